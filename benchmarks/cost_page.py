"""The page docs/performance.md, from what was counted and timed; runs nothing."""

import json
import pathlib
from typing import Any

MEASURED, COMPILED = "performance.json", "compiled.json"
"""Files of benchmarks/performance.py: with times, of an accelerator; without, of any
machine."""
# A large accelerator of 2024, from its data sheet: dense bfloat16, memory bandwidth.
PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12
LAUNCH = 1e-3  # seconds in which a host hands over one step, as an assumption
KERNEL = 3e-6  # seconds of the smallest operation of a program, as an assumption
EPOCHS, IMAGES = 200, 50_000
GOALS = {"seconds": 90.0, "step": 1.05, "memory": 1.10}
"""Of one H200-class GPU: a run of ResNet-20, and QuantNet over float at batch 512."""


def page(results: pathlib.Path) -> str:
    """The whole page.

    Args:
      results: folder with cost.json and step_time.json, perhaps with the files above.
    """
    cost = json.loads((results / "cost.json").read_text())
    times = json.loads((results / "step_time.json").read_text())
    read = lambda name: (
        json.loads((results / name).read_text()) if (results / name).exists() else {}
    )
    measured, compiled = read(MEASURED), read(COMPILED)
    return f"""# What training costs

Written by `python benchmarks/performance.py`, which measures all of it on one GPU or
TPU chip (`--compile`: programs alone, on any machine), and by
`python benchmarks/cost.py`, which counts operations; do not edit.

## Goals

For one GPU of the class of an H200, ResNet-20 on CIFAR-100:

| goal | at most | measured |
|---|---:|---|
{goals(measured, compiled)}

## What the quantizer adds

Operations of one training step (forward, backward, update), as XLA counts them before
it optimizes the program for a device: the same on every machine. The
sub-network works on weights, so its part shrinks as the batch grows, grows with its
width and follows the number of weights.

| network | pixels | batch | width | float, GFLOP | QuantNet adds | state, over float |
|---|---:|---:|---:|---:|---:|---:|
{rows(cost["rows"])}

Width: of the sub-network. State: weights, optimizer and what the quantizer learns; the
sub-network's inner values, width numbers for each unit, come on top while a step runs.

{programs(compiled)}
## Measured

{timed(times)}
{grown(measured, cost)}
## The floor of a long run

ResNet-20 on CIFAR-100, {EPOCHS} epochs. On an accelerator of
{PEAK_FLOPS / 1e12:.0f} TFLOP/s (bfloat16) and {PEAK_BYTES / 1e12:.1f} TB/s, \
computed, not measured:

| floor | batch | of a step | of the run | seconds |
|---|---:|---:|---:|---:|
{floors(cost["rows"], compiled)}

Memory: each convolution reads its input and writes its output forward, and does so
twice backward (gradient of input and of kernel), and BatchNorm reads the output once
more each way, all in 2 bytes; everything else is taken as fused. Operations: those of a
step as compiled for a CPU, as if each took no longer than {1e6 * KERNEL:.0f} us; \
compilers for GPUs join
more of them. So launches, not arithmetic, are what a small network pays for:
`steps_per_call` steps go to an accelerator in one dispatch, and a large batch has
fewer of them.
Where the time of a step goes: `python train.py --profile`.
"""


def not_run(value: float | None, text: str) -> str:
    """A number, or that there is none."""
    return "not run" if value is None else text.format(value)


def find(found: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The first row with these entries; {} without one."""
    rows_ = found.get("rows", ())
    return next((r for r in rows_ if wanted.items() <= r.items()), {})


def memory_ratio(row: dict[str, Any]) -> float | None:
    """Memory of QuantNet's program over the float one's."""
    return row["quantnet"]["memory"] / row["identity"]["memory"] if row else None


def goals(measured: dict[str, Any], compiled: dict[str, Any]) -> str:
    """The rows of the first table."""
    run = (measured.get("run") or {}).get("quantnet")
    row = find(measured, model="resnet20", batch=512)
    memory = not_run(memory_ratio(row), "{:.3f}")
    there = memory_ratio(find(compiled, model="resnet20", batch=512))
    if not row and there:
        memory += f" (as compiled for a CPU: {there:.3f})"
    lines = [
        (
            f"seconds of {EPOCHS} epochs of QuantNet, batch 128, with 20 evaluations, "
            "without compilation",
            f"{GOALS['seconds']:g}",
            not_run(run and run * EPOCHS, "{:.0f}"),
        ),
        (
            "step of QuantNet over float, batch 512",
            f"{GOALS['step']:.2f}",
            not_run(row.get("over_float"), "{:.3f}"),
        ),
        (
            "memory of a step of QuantNet over float, batch 512",
            f"{GOALS['memory']:.2f}",
            memory,
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def programs(compiled: dict[str, Any]) -> str:
    """The section of compiled programs; '' where there are none."""
    if not compiled:
        return ""
    lines = []
    for row in compiled["rows"]:
        plain, ours = row["identity"], row["quantnet"]
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['width']} "
            f"| {plain['launches']} | +{ours['launches'] - plain['launches']} "
            f"| {plain['memory'] / 2**20:,.0f} | {memory_ratio(row):.3f} |"
        )
    return (
        f"As compiled for {compiled['device']} in float32 (`{compiled['command']}`): "
        "operations of\na step, and memory at its peak.\n\n"
        "| network | batch | width | operations, float | QuantNet | memory, float, MiB "
        "| over float |\n|---|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(lines)
        + "\n"
    )


def grown(measured: dict[str, Any], cost: dict[str, Any]) -> str:
    """How the measured cost grows, beside its floor; or that it was not measured."""
    if not measured:
        return "On accelerators: not run yet.\n"
    lines = []
    for row in measured["rows"]:
        plain, ours = row["identity"], row["quantnet"]
        point = {k: row[k] for k in ("model", "pixels", "batch", "width")}
        counted = find(cost, **point)
        arithmetic = counted["identity"]["flops"] / PEAK_FLOPS
        floor = max(arithmetic, counted["floor_bytes"] / PEAK_BYTES)
        lines.append(
            f"| {' | '.join(map(str, point.values()))} | {1e3 * plain['seconds']:.3f} "
            f"| {row['over_float']:.3f} | {memory_ratio(row):.3f} "
            f"| {plain['launches']} | +{ours['launches'] - plain['launches']} "
            f"| {1e3 * floor:.3f} | {plain['seconds'] / floor:.1f} |"
        )
    run = measured["run"] or {}
    seconds = ", ".join(f"{k} {v * EPOCHS:.0f} s" for k, v in run.items())
    return (
        f"On {measured['device']} (`{measured['command']}`), bfloat16, many steps in a "
        "dispatch:\n\n"
        "| network | pixels | batch | width | float, ms | QuantNet, step over float "
        "| memory over float | operations, float | QuantNet | floor, ms "
        "| float over floor |\n"
        f"|---|{'---:|' * 10}\n" + "\n".join(lines) + "\n\n"
        "Floor: the larger one of arithmetic and memory, as below. "
        f"{EPOCHS} epochs of the training program: {seconds or 'not run'}.\n"
    )


def floors(found: list[dict[str, Any]], compiled: dict[str, Any]) -> str:
    """The rows of the last table."""
    lines = []
    for batch in (128, 512):
        row = find({"rows": found}, model="resnet20", batch=batch)
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
        program = find(compiled, model="resnet20", batch=batch)
        for method in ("identity", "quantnet") if program else ():
            count = program[method]["launches"]
            name = {"identity": "float"}.get(method, method)
            cells.append((f"operations, {name}", f"{count}", f"{count * steps:.2g}",
                          count * steps * KERNEL))  # fmt: skip
        lines += [f"| {c[0]} | {batch} | {c[1]} | {c[2]} | {c[3]:.1f} |" for c in cells]
    return "\n".join(lines)


def rows(found: list[dict[str, Any]]) -> str:
    """The rows of the first table."""
    lines = []
    for row in found:
        plain, ours = row["identity"], row["quantnet"]
        lines.append(
            f"| {row['model']} | {row['pixels']} | {row['batch']} | {row['width']} "
            f"| {plain['flops'] / 1e9:.1f} "
            f"| {100 * (ours['flops'] / plain['flops'] - 1):.2f} % "
            f"| {ours['state_bytes'] / plain['state_bytes']:.3f} |"
        )
    return "\n".join(lines)


def timed(times: dict[str, Any]) -> str:
    """The paragraph of step times."""
    ratios = {k: row["over_float_paired"] for k, row in times["methods"].items()}
    return (
        f"{times['model']}, batch {times['batch']}, {times['device']}, "
        f"{times['cores']} cores, medians of {times['repeats']} rounds in turns: a\n"
        f"float step takes {1e3 * times['methods']['identity']['median']:.0f} ms, a "
        f"QuantNet step {ratios['quantnet']:.2f} of it, tanh_sign "
        f"{ratios['tanh_sign']:.2f}, binary_ste\n{ratios['binary_ste']:.2f} (the "
        "machine's noise is about 0.1).\n"
    )
