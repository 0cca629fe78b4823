"""The page docs/performance.md, from what was counted and timed; runs nothing."""

import json
import pathlib
from typing import Any

# A large accelerator of 2024, from its data sheet: dense bfloat16, memory bandwidth.
PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12
LAUNCH = 1e-3  # seconds in which a host hands over one step, as an assumption
EPOCHS, IMAGES = 200, 50_000


def page(results: pathlib.Path) -> str:
    """The whole page.

    Args:
      results: folder with cost.json and step_time.json.
    """
    cost = json.loads((results / "cost.json").read_text())
    times = json.loads((results / "step_time.json").read_text())
    base = cost["rows"][0]
    steps = EPOCHS * IMAGES / base["batch"]
    return f"""# What training costs

Written by `python benchmarks/cost.py --page` from results/cost.json (counted) and
results/step_time.json (timed); do not edit.

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

## Measured

{timed(times)}
On accelerators: not run yet. The command is
`python benchmarks/step_time.py --model=resnet20 --batch=512`.

## The floor of a long run

ResNet-20 on CIFAR-100, {EPOCHS} epochs, batch {base["batch"]}: {steps:,.0f} steps.
On an accelerator of {PEAK_FLOPS / 1e12:.0f} TFLOP/s (bfloat16) and
{PEAK_BYTES / 1e12:.1f} TB/s, computed, not measured:

| floor | of a step | of the run | seconds |
|---|---:|---:|---:|
{floors(base, steps)}

Memory: each convolution reads its input and writes its output forward, and does so
twice backward (gradient of input and of kernel), and BatchNorm reads the output once
more each way, all in 2 bytes; everything else is taken as fused. So launches, not
arithmetic, are what a small network pays for: `chunk` steps go to an accelerator in one
dispatch.
"""


def floors(base: dict[str, Any], steps: float) -> str:
    """The rows of the last table."""
    flops, moved = base["identity"]["flops"], base["floor_bytes"]
    cells = (
        ("arithmetic", f"{flops / 1e9:.1f} GFLOP", f"{flops * steps:.2g} FLOP"),
        ("memory", f"{moved / 1e9:.2f} GB", f"{moved * steps / 1e12:.0f} TB"),
        (f"a dispatch for each step, {1e3 * LAUNCH:.0f} ms", "1", f"{steps:,.0f}"),
        ("a dispatch for 50 steps", "0.02", f"{steps / 50:,.0f}"),
    )
    seconds = (
        flops * steps / PEAK_FLOPS,
        moved * steps / PEAK_BYTES,
        steps * LAUNCH,
        steps / 50 * LAUNCH,
    )
    return "\n".join(
        f"| {' | '.join(row)} | {s:.1f} |"
        for row, s in zip(cells, seconds, strict=True)
    )


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
