"""Times the binary convolution by bit counts over the float one, on one thread.

    python benchmarks/popcount.py        # writes results/popcount.json

The 3x3 convolutions of ResNet-18, one image. The binary time holds the packing of the
activations and the scale of each channel. Both are compiled; they take turns in one
process that is bound to one core, so XLA has one thread. Before anything is timed the
two must agree exactly on the signs. Times of the Larq Compute Engine, measured by
benchmarks/popcount_lce.py in its own environment, join the table if they are there.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/popcount.py` finds only benchmarks/

if __name__ == "__main__":  # before XLA counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from quantnet_jax.core import ops  # noqa: E402
from quantnet_jax.core.qtensor import QTensor  # noqa: E402
from quantnet_jax.deploy import popcount  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402

SHAPES = ("56x64", "28x128", "14x256", "7x512")
PADDING = ((1, 1), (1, 1))
WARM_UP = 5  # calls of each, not counted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/popcount.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, help="PIXELSxCHANNELS, square images"
    )
    parser.add_argument("--repeats", type=int, default=100, help="rounds")
    results = ROOT / "results"
    parser.add_argument("--out", default=str(results / "popcount.json"), help="JSON")
    parser.add_argument(
        "--lce", default=str(results / "popcount_lce.json"), help="JSON to compare with"
    )
    args = parser.parse_args(argv)
    try:
        if args.repeats < 2:
            raise ValueError(f"--repeats={args.repeats}, expected at least 2")
        shapes = {name: parse(name) for name in args.shapes}
        load = {"before": os.getloadavg()}
        rows = {name: measure(*shapes[name], args.repeats) for name in shapes}
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if argv is None else argv
    result = {
        "benchmark": "seconds of one 3x3 convolution of one image, float and binary",
        "command": shlex.join(["python", "benchmarks/popcount.py", *words]),
        "repeats": args.repeats,
        "warm_up": WARM_UP,
        "shapes": rows,
        "geometric_mean": statistics.geometric_mean(
            row["speedup"] for row in rows.values()
        ),
        "lce": compare(args.lce, rows),
        "threads": len(os.sched_getaffinity(0)),
        "cpu": cpu(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load": load | {"after": os.getloadavg()},
        **provenance(),
    }
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, result)
    print(table(result))
    print(f"\nwrote {args.out}")
    return 0


def parse(name: str) -> tuple[int, int]:
    """(pixels, channels) of 'PIXELSxCHANNELS'."""
    numbers = name.split("x")
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) for n in numbers):
        raise ValueError(f"--shapes {name}, expected PIXELSxCHANNELS such as 56x64")
    return int(numbers[0]), int(numbers[1])


def measure(pixels: int, channels: int, repeats: int) -> dict:
    """Times of both convolutions of one shape, and their ratio."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, pixels, pixels, channels)).astype(np.float32)
    qt = QTensor(
        jnp.asarray(rng.integers(0, 2, (3, 3, channels, channels)), jnp.uint8),
        jnp.asarray([-1.0, 1.0], jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2.0, (1, 1, 1, channels)), jnp.float32),
    )
    words, scale = popcount.pack_qtensor(qt)
    floats = qt.levels[qt.codes]
    usual = jax.jit(lambda x, w: ops.conv2d(x, w, padding=PADDING))
    binary = jax.jit(
        lambda x, w, s: popcount.binary_conv2d(x, w, scale=s, padding=PADDING)
    )
    x = jnp.asarray(x)
    signs = jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype)
    exact = usual(signs, floats) * scale[None, None, None]
    if not (exact == binary(x, words, scale)).all():
        raise ValueError(f"{pixels}x{channels}: the two convolutions differ")
    times = take_turns(
        {"float": lambda: usual(x, floats), "binary": lambda: binary(x, words, scale)},
        repeats,
    )
    row: dict = {name: spread(seconds) for name, seconds in times.items()}
    row["speedup"] = row["float"]["median"] / row["binary"]["median"]
    return row


def take_turns(runs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one of each in a round, the first one changing."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-WARM_UP, repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.perf_counter()
            jax.block_until_ready(runs[name]())
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles and fastest."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": median, "quartiles": [low, high], "fastest": min(seconds)}


def compare(path: str, rows: dict) -> dict | str:
    """What popcount_lce.py measured and its times over ours; or why there is none."""
    file = pathlib.Path(path)
    if not file.is_file():
        return "not run: benchmarks/popcount_lce.py has written no results"
    lce = json.loads(file.read_text("utf-8"))
    for name in lce["shapes"].keys() & rows.keys():
        row = lce["shapes"][name]
        row["lce_over_binary"] = row["median"] / rows[name]["binary"]["median"]
    return lce


def cpu() -> dict:
    """Name of the processor, and whether it counts bits in vectors by itself."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return {"model": None}
    about = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    about = {key.strip(): value.strip() for key, value in about.items()}
    flags = about.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_vpopcntdq")
    return {"model": about.get("model name")} | {x: x in flags for x in wanted}


def table(result: dict) -> str:
    """The text that the command prints."""
    lce = result["lce"]["shapes"] if isinstance(result["lce"], dict) else {}
    ms = lambda row: f"{1e3 * row['median']:.3f}"
    rows = [
        (
            *(name, ms(row["float"]), ms(row["binary"]), f"{row['speedup']:.1f}"),
            ms(lce[name]) if name in lce else "not run",
            f"{lce[name]['lce_over_binary']:.1f}" if name in lce else "",
        )
        for name, row in result["shapes"].items()
    ]
    head = (
        f"3x3, one image, {result['threads']} thread(s) of {result['cpu']['model']}, "
        f"medians of {result['repeats']}; float over binary, geometric mean: "
        f"{result['geometric_mean']:.1f}\n"
    )
    titles = (
        "shape",
        "float ms",
        "binary ms",
        "float over binary",
        "LCE ms",
        "LCE over binary",
    )
    return head + "\n" + records.table(rows, titles)


if __name__ == "__main__":
    sys.exit(main())
