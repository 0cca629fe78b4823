"""The tables of docs/performance.md on training: operations, memory, times, bounds."""

import pathlib
from typing import Any

from quantnet_jax.experiments import results
from quantnet_jax.experiments.queue import HUGE_PAGES
from quantnet_jax.experiments.tables import markdown
from tools.blocks import Record, last

# A large accelerator of 2024, from its data sheet: dense bfloat16, memory bandwidth.
PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12
LAUNCH = 1e-3  # seconds in which a host hands over one step, as an assumption
KERNEL = 3e-6  # seconds of the smallest operation of a program, as an assumption
EPOCHS, IMAGES = 200, 50_000
GOALS = {"seconds": 90.0, "step": 1.05, "memory": 1.10}
"""Of one H200-class GPU: a run of ResNet-20, and QuantNet over float at batch 512."""
BATCHES = (128, 512)


def row_of(record: Record, **wanted: Any) -> Record:
    """The first row of a record that has these entries; {} without one."""
    rows = record.get("rows", ())
    return next((r for r in rows if wanted.items() <= r.items()), {})


def memory_ratio(row: Record) -> float | None:
    """Memory of QuantNet's program over the float one's."""
    return row["quantnet"]["memory"] / row["identity"]["memory"] if row else None


def goals(folder: pathlib.Path) -> str:
    """What one accelerator is to reach, and what was measured."""
    measured, compiled = (last(x, folder) for x in ("performance", "compiled"))
    show = lambda value, text: "not run" if value is None else text.format(value)
    run = (measured.get("run") or {}).get("quantnet")
    row = row_of(measured, model="resnet20", batch=512)
    memory = show(memory_ratio(row), "{:.3f}")
    there = memory_ratio(row_of(compiled, model="resnet20", batch=512))
    if not row and there:
        memory += f" (as compiled for a CPU: {there:.3f})"
    rows = [
        (f"seconds of {EPOCHS} epochs of QuantNet, batch 128, with 20 evaluations, "
         "without compilation", f"{GOALS['seconds']:g}",
         show(run and run * EPOCHS, "{:.0f}")),
        ("step of QuantNet over float, batch 512", f"{GOALS['step']:.2f}",
         show(row.get("over_float"), "{:.3f}")),
        ("memory of a step of QuantNet over float, batch 512",
         f"{GOALS['memory']:.2f}", memory),
    ]  # fmt: skip
    return markdown(("goal", "at most", "measured"), rows, "xr")


def cost(folder: pathlib.Path) -> str:
    """What the quantizer adds to the operations of a step, as lowered."""
    rows = []
    for row in last("cost", folder)["rows"]:
        plain, ours = row["identity"], row["quantnet"]
        rows.append(
            (row["model"], str(row["pixels"]), str(row["batch"]), str(row["width"]),
             f"{plain['flops'] / 1e9:.1f}",
             f"{100 * (ours['flops'] / plain['flops'] - 1):.2f} %",
             f"{ours['state_bytes'] / plain['state_bytes']:.3f}")
        )  # fmt: skip
    head = ("network", "pixels", "batch", "width", "float, GFLOP", "QuantNet adds")
    return markdown((*head, "state, over float"), rows, "xrrrrrr")


def programs(folder: pathlib.Path) -> str:
    """Operations and memory of compiled steps."""
    rows = []
    for row in last("compiled", folder)["rows"]:
        plain, ours = row["identity"], row["quantnet"]
        rows.append(
            (row["model"], str(row["batch"]), str(row["width"]),
             str(plain["launches"]), f"+{ours['launches'] - plain['launches']}",
             f"{plain['memory'] / 2**20:,.0f}", f"{memory_ratio(row):.3f}")
        )  # fmt: skip
    head = ("network", "batch", "width", "operations, float", "QuantNet")
    return markdown((*head, "memory, float, MiB", "over float"), rows, "xrrrrrr")


def step_time(folder: pathlib.Path) -> str:
    """Seconds of a step of each method, interleaved."""
    found = results.read("step_time", folder)
    ours = [r for r in found if r.get("model") == "resnet20" and "torch" not in r]
    rows = [(name, *_time(x)) for name, x in ours[-1]["methods"].items()]
    body = markdown(("method", "ms a step", "over float"), rows, "xrr")
    return f"{body}\n\n{_about(ours[-1])}"


def step_time_torch(folder: pathlib.Path) -> str:
    """The same with PyTorch's float step among them, and with huge pages."""
    found = [r for r in results.read("step_time", folder) if "torch" in r]
    if not found:
        return "Not run."
    plain, huge = (_newest(found, tunables) for tunables in ("", HUGE_PAGES))
    rows = _beside(plain["methods"], huge["methods"])
    head = ("method", "ms a step", "over float", "huge pages: ms", "over float")
    about = plain["torch"]
    of = f"PyTorch {about['torch']}, {about['threads']} threads, channels last."
    return f"{markdown(head, rows, 'xrrrr')}\n\n{_about(plain)} {of}"


def _newest(found: list[Record], tunables: str) -> Record:
    """Of the records of a setting of malloc."""
    return [r for r in found if r.get("glibc_tunables", "") == tunables][-1]


def _time(x: Record) -> tuple[str, str]:
    return f"{1e3 * x['median']:.0f}", f"{x['over_float_paired']:.2f}"


def _beside(plain: Record, huge: Record) -> list[tuple[str, ...]]:
    """Rows of times and ratios, in two settings."""
    return [(name, *_time(x), *_time(huge[name])) for name, x in plain.items()]


def _about(found: dict) -> str:
    return (
        f"{found['model']}, batch {found['batch']}, {found['device']}, "
        f"{found['cores']} cores; medians of {found['repeats']} interleaved rounds."
    )


def kernel_gradient(folder: pathlib.Path) -> str:
    """A step by the form of its kernel gradients on CPUs, and where its time goes."""
    if not (found := results.read("kernel_gradient", folder)):
        return "Not run."
    plain, huge = (_newest(found, tunables) for tunables in ("", HUGE_PAGES))
    profile = plain["profile"]
    kinds = sorted({k for x in profile.values() for k in x})
    rows = [
        (name, *times, *(f"{1e3 * profile[name].get(k, 0):.0f}" for k in kinds))
        for name, *times in _beside(plain["forms"], huge["forms"])
    ]
    both = lambda over: ("ms", over, "huge pages: ms", over)
    head = ("kernel gradients", *both("over XLA's"), *kinds)
    body = markdown(head, rows, "x" + "r" * (4 + len(kinds)))
    several, steps = (x["scans"]["rows"] for x in (plain, huge)), plain["scans"]
    head = (f"{steps['steps']} steps", *both("over one by one"))
    scans = markdown(head, _beside(*several), "xrrrr")
    return f"{body}\n\n{scans}\n\n{_about(plain)}"


def accelerator(folder: pathlib.Path) -> str:
    """Measured steps and runs on an accelerator."""
    found, counted = last("performance", folder), last("cost", folder)
    if not found:
        return "On accelerators: not run yet."
    rows = []
    for row in found["rows"]:
        plain, ours = row["identity"], row["quantnet"]
        point = {k: row[k] for k in ("model", "pixels", "batch", "width")}
        known = row_of(counted, **point)
        arithmetic = known["identity"]["flops"] / PEAK_FLOPS
        floor = max(arithmetic, known["floor_bytes"] / PEAK_BYTES)
        rows.append(
            (*map(str, point.values()), f"{1e3 * plain['seconds']:.3f}",
             f"{row['over_float']:.3f}", f"{memory_ratio(row):.3f}",
             str(plain["launches"]), f"+{ours['launches'] - plain['launches']}",
             f"{1e3 * floor:.3f}", f"{plain['seconds'] / floor:.1f}")
        )  # fmt: skip
    head = ("network", "pixels", "batch", "width", "float, ms", "step over float")
    head += ("memory over float", "operations, float", "QuantNet", "bound, ms")
    run = found["run"] or {}
    seconds = ", ".join(f"{k} {v * EPOCHS:.0f} s" for k, v in run.items())
    return (
        f"{markdown((*head, 'float over bound'), rows, 'x' + 'r' * 10)}\n\n"
        f"{found['device']}, bfloat16, many steps a dispatch. {EPOCHS} epochs of the "
        f"training program: {seconds or 'not run'}."
    )


def bounds(folder: pathlib.Path) -> str:
    """Lower bounds of a long run of ResNet-20, computed."""
    counted, compiled = last("cost", folder), last("compiled", folder)
    rows = []
    for batch in BATCHES:
        row = row_of(counted, model="resnet20", batch=batch)
        steps = EPOCHS * IMAGES / batch
        flops, moved = row["identity"]["flops"], row["floor_bytes"]
        cells = [
            ("arithmetic", f"{flops / 1e9:.1f} GFLOP", f"{flops * steps:.2g} FLOP",
             flops * steps / PEAK_FLOPS),
            ("memory", f"{moved / 1e9:.2f} GB", f"{moved * steps / 1e12:.0f} TB",
             moved * steps / PEAK_BYTES),
            (f"a dispatch for each step, {1e3 * LAUNCH:.0f} ms", "1", f"{steps:,.0f}",
             steps * LAUNCH),
            ("a dispatch for 50 steps", "0.02", f"{steps / 50:,.0f}",
             steps / 50 * LAUNCH),
        ]  # fmt: skip
        program = row_of(compiled, model="resnet20", batch=batch)
        for method, name in (("identity", "float"), ("quantnet", "quantnet")):
            count = program[method]["launches"]
            cells.append((f"operations, {name}", f"{count}", f"{count * steps:.2g}",
                          count * steps * KERNEL))  # fmt: skip
        rows += [(c[0], str(batch), *c[1:3], f"{c[3]:.1f}") for c in cells]
    head = ("bound", "batch", "of a step", "of the run", "seconds")
    return markdown(head, rows, "xrrrr")


BLOCKS = {
    "goals": goals,
    "cost": cost,
    "programs": programs,
    "step time": step_time,
    "step time, PyTorch": step_time_torch,
    "kernel gradient": kernel_gradient,
    "accelerator": accelerator,
    "bounds": bounds,
}
