"""The clock of the records, on a clock of the test; the memory of made-up devices."""

import pathlib
import re
import types

import jax
import pytest

from quantnet_jax.distributed import hosts
from quantnet_jax.logging import meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when `clock.now` is changed."""
    clock = types.SimpleNamespace(now=100.0)
    time = types.SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(meter, "time", time)
    return clock


def test_times_are_those_of_the_record(clock):
    def batches():
        for batch in range(5):
            clock.now += 0.25  # until the batch is there
            yield batch

    found = meter.Meter()
    seen = []
    for batch in found.waiting(batches()):
        seen.append(batch)
        clock.now += 0.75  # of the step
        if batch == 3:
            break
    row = found.read(steps=4, batch_size=32)
    assert seen == [0, 1, 2, 3]
    assert row["step_time"] == 1.0 and row["examples_per_second"] == 32.0
    assert row["data_wait"] == 0.25
    clock.now += 1000.0  # an evaluation
    found.restart()
    clock.now += 2.0
    row = found.read(steps=4, batch_size=32)
    assert row["step_time"] == 0.5 and row["data_wait"] == 0.0


def device(**stats):
    return types.SimpleNamespace(memory_stats=lambda: stats or None)


@pytest.mark.parametrize(
    ("devices", "peak"),
    [
        ([device(peak_bytes_in_use=5), device(peak_bytes_in_use=7)], 7),
        ([device(peak_bytes_in_use=5), device()], 5),
        ([device(bytes_in_use=5)], None),
        ([device()], None),
    ],
)
def test_memory_is_that_of_the_fullest_device(monkeypatch, devices, peak):
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(hosts, "backend", lambda: "gpu")
    assert hosts.peak_memory() == peak
    row = meter.Meter().read(1, 1)
    assert row.get("device_memory") == peak and ("device_memory" in row) == bool(peak)


def test_memory_of_a_cpu_is_that_of_the_process():
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to compare with")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert hosts.peak_memory() == pytest.approx(1024 * int(peak), rel=0.1)
