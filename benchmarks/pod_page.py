"""Fills in the computed tables of docs/tpu_pod.md; runs and measures nothing.

    python benchmarks/pod_page.py

The numbers come from results/collectives.json (bytes in the compiled program),
results/decode.json (pictures that a core decodes; 'not measured' while it is missing),
the traced network and the data sheets below.
"""

import functools
import json
import math
import pathlib
import re
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/pod_page.py` finds only its folder

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from quantnet_jax import models  # noqa: E402
from quantnet_jax.deploy import macs  # noqa: E402

PAGE = ROOT / "docs" / "tpu_pod.md"
NETWORK, IMAGES, EPOCHS, PIXELS, CLASSES = "resnet18", 1_281_167, 100, 224, 1000
BATCH = 128  # of a device
DEVICES = (8, 32, 128)
WIDTH, TAPS = 64, 9  # of the sub-network on slices of 3 x 3
PASSES = 6  # of bfloat16 products that make a float32 one on a TPU, at most
GB = 1e9


class Device(NamedTuple):
    """From the vendor's data sheet: dense bfloat16 FLOP/s, bytes of memory, bytes/s of
    memory, bytes/s that it sends to its neighbours; cores of its host divided by the
    host's devices; dollars an hour as assumed."""

    flops: float
    memory: float
    bandwidth: float
    links: float
    cores: int
    price: float


SHEET = {
    "TPU v4": Device(275e12, 32 * GB, 1228 * GB, 300 * GB, 60, 3.22),
    "TPU v5e": Device(197e12, 16 * GB, 819 * GB, 200 * GB, 28, 1.20),
    "TPU v5p": Device(459e12, 95 * GB, 2765 * GB, 600 * GB, 52, 4.20),
    "H100 SXM": Device(989e12, 80 * GB, 3350 * GB, 450 * GB, 26, 11.06),
}


class Work(NamedTuple):
    """Of one image: multiply-accumulates forward, elements that convolutions put out;
    of the network: quantized weights."""

    macs: int
    outputs: int
    weights: int


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text, ROOT / "results"), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


def filled(text: str, results: pathlib.Path) -> str:
    """The page with each computed part written anew, between its two marks.

    Raises:
      ValueError: a part has no place on the page.
    """
    sent = json.loads((results / "collectives.json").read_text())
    decode = read(results / "decode.json")
    work = count()
    parts = {
        "reduced": reduced(sent),
        "memory": memory(sent),
        "floors": floors(work, sent, our_rate(decode)),
        "run": whole_run(work, sent, our_rate(decode)),
        "hosts": hosts(work, sent, decode),
    }
    for name, part in parts.items():
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(\n<!-- end of {name} -->)"
        text, found = re.subn(
            pattern,
            lambda m, part=part: f"{m[1]}{part}{m[2]}",
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(f"the page has {found} places for {name!r}, expected 1")
    return text


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """A result, None where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else None


@functools.cache
def count() -> Work:
    """What there is to compute for an image, from the trace of the network."""
    network = models.create(NETWORK, outputs=CLASSES, folded=True)
    image = jax.ShapeDtypeStruct((1, PIXELS, PIXELS, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]

    def apply(params, image):
        return network.apply({"params": params}, image, train=False)

    uses = [use for use in macs.count(apply, params, image) if use.macs and use.params]
    inner = re.compile(models.KERNELS["inner"])
    paths = jax.tree_util.tree_leaves_with_path(params)
    named = [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in paths]
    return Work(
        macs=sum(use.macs for use in uses),
        outputs=sum(math.prod(use.shape) for use in uses),
        weights=sum(math.prod(x.shape) for name, x in named if inner.search(name)),
    )


def lower_bounds(
    device: Device, work: Work, sent: dict, rate: float | None = None
) -> dict[str, float]:
    """Seconds of one step below which a device cannot be, for each resource.

    Args:
      device: see `SHEET`.
      work: of the network.
      sent: results/collectives.json.
      rate: pictures that a core decodes in a second, None if that is not known.
    """
    # Forward, and backward for inputs and for kernels: three products for each one.
    network = 2 * 3 * work.macs * BATCH
    # The sub-network: encode and compress each slice, in float32, three products each.
    quantizer = 2 * 3 * (work.weights / TAPS) * (2 * TAPS * WIDTH) * PASSES
    # Each convolution reads and writes forward and twice backward, BatchNorm reads its
    # output once more each way, in 2 bytes; inputs are taken to be as large as outputs.
    moved = 2 * (3 * 2 + 2) * work.outputs * BATCH
    found = {
        "arithmetic": (network + quantizer) / device.flops,
        "memory": moved / device.bandwidth,
        # A ring sends and gets each byte twice, but for one part in as many as devices.
        "all-reduce": 2 * bytes_of(sent, "pmap") / device.links,
    }
    return found | ({"decoding": BATCH / (device.cores * rate)} if rate else {})


def bytes_of(sent: dict, place: str) -> int:
    """Bytes that a step of the large network reduces."""
    return sent["networks"]["ResNet-18 on ImageNet"][place]["bytes"]["all-reduce"][
        "bytes"
    ]


def floor(device: Device, work: Work, sent: dict, rate: float | None = None) -> float:
    """Seconds of a step in which everything overlaps perfectly."""
    return max(lower_bounds(device, work, sent, rate).values())


def our_rate(decode: dict | None) -> float | None:
    """Pictures that a core decodes in a second, None while it is not measured."""
    return decode["images_per_second_per_core"]["ours"] if decode else None


# The parts ----------------------------------------------------------------------------
def reduced(sent: dict) -> str:
    """What one step sends, for each network and runner."""
    rows = []
    for network, places in sent["networks"].items():
        for place, row in places.items():
            expected = row["expected"]
            kinds = {k: v["bytes"] for k, v in row["bytes"].items()}
            gathered = kinds.get("all-gather", 0)
            rows.append(
                (
                    network,
                    place,
                    megabytes(expected["gradients"]),
                    megabytes(
                        expected["statistics"] + expected["statistics_gradients"]
                    ),
                    megabytes(kinds["all-reduce"]),
                    f"{row['over_expected']:.4f}",
                    megabytes(gathered) if gathered else "0",
                    str(sum(v["operations"] for v in row["bytes"].values())),
                )
            )
    titles = (
        *("network", "runner", "gradients, MB", "statistics, MB", "all-reduce, MB"),
        *("over expected", "all-gather, MB", "operations"),
    )
    return table(titles, rows)


def memory(sent: dict) -> str:
    """Bytes of the state on one device."""
    rows = [
        (
            network,
            place,
            megabytes(row["state"]),
            megabytes(row["state_on_a_device"]),
            f"{row['state_on_a_device'] / row['state']:.3f}",
        )
        for network, places in sent["networks"].items()
        for place, row in places.items()
    ]
    titles = ("network", "runner", "state, MB", "on a device, MB", "part")
    return table(titles, rows)


def floors(work: Work, sent: dict, rate: float | None) -> str:
    """Lower bounds of a step for each device."""
    rows = []
    for name, device in SHEET.items():
        found = lower_bounds(device, work, sent, rate)
        step = floor(device, work, sent, rate)
        milliseconds = [f"{1e3 * seconds:.2f}" for seconds in found.values()]
        rows.append(
            (
                name,
                f"{device.flops / 1e12:.0f}",
                f"{device.bandwidth / 1e9:.0f}",
                f"{device.links / 1e9:.0f}",
                *milliseconds,
                *([] if rate else ["not measured"]),
                f"{1e3 * step:.2f}",
                f"{BATCH / step:,.0f}",
            )
        )
    titles = (
        *("device", "TFLOP/s", "memory, GB/s", "links, GB/s", "arithmetic, ms"),
        *("memory, ms", "all-reduce, ms", "decoding, ms", "floor of a step, ms"),
        "images/s, at most",
    )
    return table(titles, rows)


def whole_run(work: Work, sent: dict, rate: float | None) -> str:
    """Hours and dollars of a run at the floor."""
    rows = []
    for name, device in SHEET.items():
        step = floor(device, work, sent, rate)
        hours = [EPOCHS * IMAGES / BATCH / n * step / 3600 for n in DEVICES]
        rows.append(
            (
                name,
                *(f"{h:.2f}" for h in hours),
                f"{hours[0] * DEVICES[0]:.1f}",
                f"{device.price:.2f}",
                f"{hours[0] * DEVICES[0] * device.price:,.0f}",
            )
        )
    titles = (
        "device",
        *(f"hours on {n}" for n in DEVICES),
        *("device-hours", "$ an hour, assumed", "$, at least"),
    )
    return table(titles, rows)


def hosts(work: Work, sent: dict, decode: dict | None) -> str:
    """Cores that have to decode pictures for one device at its floor."""
    rate = our_rate(decode)
    rows = []
    for name, device in SHEET.items():
        need = BATCH / floor(device, work, sent)
        wanted, given = "not measured", "not measured"
        if rate:
            wanted, given = f"{need / rate:.0f}", f"{device.cores * rate:,.0f}"
        rows.append((name, f"{need:,.0f}", wanted, str(device.cores), given))
    titles = (
        *("device", "images/s, at most", "cores that this takes", "cores it has"),
        "images/s of these",
    )
    words = "Pictures that a core decodes and crops in a second: not measured yet."
    if decode:
        found = decode["images_per_second_per_core"]
        others = [f"{k} {v:.0f}" for k, v in found.items() if k != "ours" and v]
        words = f"Pictures that a core decodes and crops in a second: {rate:.0f}"
        words += f" ({', '.join(others)}), measured." if others else ", measured."
    return words + "\n\n" + table(titles, rows)


def megabytes(count: float) -> str:
    """With three digits behind the point."""
    return f"{count / 1e6:.3f}"


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; all columns but those of names are aligned right."""
    names = [c for c in range(len(titles)) if titles[c] in ("network", "runner")] + [0]
    marks = ["---" if c in names else "---:" for c in range(len(titles))]
    lines = [titles, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
