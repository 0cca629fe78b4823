"""Times the binary convolution by bit counts over the float one, on one thread.

    python -m benchmarks.popcount     # XLA_FLAGS=--xla_cpu_max_isa=AVX2: without AVX512

The 3x3 convolutions of ResNet-18, one image. The binary time holds the packing of the
activations and the scale of each channel. Before anything is timed the two must agree
exactly on the signs. (Records of the Larq Compute Engine in results/popcount.jsonl were
measured by an earlier version of this script.)
"""

import os
import statistics
import sys

if __name__ == "__main__":  # before XLA counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import timing  # noqa: E402
from quantnet_jax import ops  # noqa: E402
from quantnet_jax.core.qtensor import QTensor  # noqa: E402
from quantnet_jax.ops import popcount  # noqa: E402

SHAPES = ("56x64", "28x128", "14x256", "7x512")
PADDING = ((1, 1), (1, 1))


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.popcount", __doc__, repeats=100, load=1.5)
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, help="PIXELSxCHANNELS, square images"
    )
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Both convolutions of each shape."""
    shapes = {name: parse(name) for name in args.shapes}
    rows = {name: convolutions(*shapes[name], args.repeats) for name in shapes}
    mean = statistics.geometric_mean(row["speedup"] for row in rows.values())
    for name, row in rows.items():
        print(f"{name:8s}float over binary {row['speedup']:.1f}")
    return {"shapes": rows, "geometric_mean": mean}


def parse(name: str) -> tuple[int, int]:
    """(pixels, channels) of 'PIXELSxCHANNELS'."""
    numbers = name.split("x")
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) for n in numbers):
        raise ValueError(f"--shapes {name}, expected PIXELSxCHANNELS such as 56x64")
    return int(numbers[0]), int(numbers[1])


def convolutions(pixels: int, channels: int, repeats: int) -> dict:
    """Times of both convolutions of one shape, and their ratio."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, pixels, pixels, channels)), jnp.float32)
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
    signs = jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype)
    exact = usual(signs, floats) * scale[None, None, None]
    if not (exact == binary(x, words, scale)).all():
        raise ValueError(f"{pixels}x{channels}: the two convolutions differ")
    calls = {
        "float": lambda: jax.block_until_ready(usual(x, floats)),
        "binary": lambda: jax.block_until_ready(binary(x, words, scale)),
    }
    times = timing.interleaved(calls, repeats)
    row: dict = timing.summary(times, "float")
    return row | {"speedup": 1 / row["binary"]["over_float"]}


if __name__ == "__main__":
    sys.exit(main())
