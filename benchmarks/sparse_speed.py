"""Times sparse convolutions over dense ones, on one thread, and counts their memory.

    python -m benchmarks.sparse_speed

A 3x3 (or 3x3x3) convolution of C channels of one grid: dense; sparse with the list and
the gather map at hand, as all layers of a resolution but the first have them; sparse
with both made from the grid; and the shifted form. Before anything is timed sparse and
dense must agree. Bytes are those of arguments, results and temporary values of the
compiled programs.
"""

import os
import sys

if __name__ == "__main__":  # before XLA counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import timing  # noqa: E402
from quantnet_jax import ops  # noqa: E402
from quantnet_jax.ops import shifted, sparse  # noqa: E402

CASES = (
    *("64x64x32:0.05", "128x128x32:0.05", "256x256x32:0.05"),
    *("64x64x32:0.1", "24x24x24x16:0.023"),
    *("28x28x16:0.1", "14x14x32:0.17", "7x7x64:0.3"),
)
"""The last four have the shares of active sites of the study's voxels and strokes."""
GROUPS = 4


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.sparse_speed", __doc__, repeats=50, load=1.5)
    parser.add_argument(
        "--cases", nargs="+", default=CASES, help="SIDES x CHANNELS : share of sites"
    )
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """All forms of each case."""
    cases = {name: parse(name) for name in args.cases}
    rows = {name: forms(*cases[name], args.repeats) for name in cases}
    for name, row in rows.items():
        for form in ("sparse", "sparse with lists", "shifted"):
            less = row["bytes"]["dense"] / row["bytes"][form]
            faster = 1 / row["times"][form]["over_float"]
            print(f"{name:18s}{form:18s}{faster:6.1f} x faster {less:6.1f} x smaller")
    return {"cases": rows}


def parse(name: str) -> tuple[tuple[int, ...], int, float]:
    """(sides, channels, share) of 'SIDExSIDExCHANNELS:SHARE'."""
    shape, _, share = name.partition(":")
    numbers = shape.split("x")
    try:
        sides, part = [int(n) for n in numbers], float(share)
    except ValueError:
        sides, part = [], 0.0
    if len(sides) not in (3, 4) or min(sides) < 1 or not 0 < part <= 1:
        raise ValueError(f"--cases {name}, expected such as 64x64x32:0.05")
    return tuple(sides[:-1]), sides[-1], part


def forms(size: tuple[int, ...], channels: int, share: float, repeats: int) -> dict:
    """Times and bytes of each form of one convolution."""
    rng, dims = np.random.default_rng(0), len(size)
    count = max(1, round(share * np.prod(size)))
    x = np.zeros((int(np.prod(size)), channels), np.float32)
    x[rng.permutation(len(x))[:count]] = rng.normal(size=(count, channels))
    x = jnp.asarray(x.reshape(1, *size, channels))
    kernel = rng.normal(size=(3,) * dims + (channels, channels)).astype(np.float32)
    flat = jnp.asarray(kernel.reshape(-1, channels, channels))
    where = shifted.shifted(3, dims)
    choice = jnp.asarray(where[np.arange(GROUPS) % len(where)])

    def listed(x, reach):
        sites = sparse.from_dense(x, count)
        return sites, sparse.gather_map(sites, sites, size, reach)

    def dense(x, w):
        if dims == 2:
            return ops.conv2d(x, w)
        names = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1,) * dims, "SAME", dimension_numbers=names
        )

    def whole(x, w):
        sites, maps = listed(x, sparse.offsets(3, dims))
        return sparse.convolve(sites.features, maps, w)

    moved = lambda x, m, w: sparse.convolve(x, m, w, choice)
    sites, maps = listed(x, sparse.offsets(3, dims))
    _, wide = listed(x, sparse.offsets(5, dims))
    given = {
        "dense": (dense, (x, jnp.asarray(kernel))),
        "sparse": (sparse.convolve, (sites.features, maps, flat)),
        "sparse with lists": (whole, (x, flat)),
        "shifted": (moved, (sites.features, wide, flat)),
    }
    compiled = {k: jax.jit(f).lower(*a).compile() for k, (f, a) in given.items()}
    results = {k: f(*given[k][1]) for k, f in compiled.items()}
    y = sparse.to_dense(sites._replace(features=results["sparse"]), size)
    masked = jnp.where(jnp.any(x != 0, -1, keepdims=True), results["dense"], 0.0)
    far = float(jnp.max(jnp.abs(y - masked)) / jnp.max(jnp.abs(masked)))
    if far > 1e-5:
        raise ValueError(f"sparse and dense differ by {far}, expected at most 1e-5")
    calls = {
        k: lambda k=k: jax.block_until_ready(compiled[k](*given[k][1])) for k in given
    }
    times = timing.interleaved(calls, repeats)
    return {
        "sites": count,
        "times": timing.summary(times, "dense"),
        "bytes": {k: _bytes(f) for k, f in compiled.items()},
    }


def _bytes(program) -> int:
    used = program.memory_analysis()
    return (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        + used.temp_size_in_bytes
    )


if __name__ == "__main__":
    sys.exit(main())
