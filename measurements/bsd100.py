"""Scores the networks of the study super_resolution on BSD100, whole images.

    python -m measurements.bsd100 --runs=runs          # five minutes on one core

RUNS is the --work of the study; the folder of the photographs is that of its runs.
"""

import math
import pathlib
import sys
from typing import Any

from benchmarks import timing
from quantnet_jax import evaluate
from quantnet_jax.experiments import grid
from quantnet_jax.experiments.study import slug

ROWS = ("float", "8 bits", "4 bits", "3 bits", "2 bits")
KEYS = ("hard", "ssim_hard", "bicubic_hard", "examples")


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("measurements.bsd100", __doc__, repeats=2, load=math.inf)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--data", default="bsd100_x2")
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict[str, Any]:
    """PSNR and SSIM of each row, and PSNR of bicubic interpolation."""
    study, found = grid.load("super_resolution"), {}
    for row in args.rows:
        if row not in study.rows:
            raise ValueError(
                f"--rows={row!r}, expected some of {', '.join(study.rows)}"
            )
        seed = study.seeds[0]
        folder = args.runs / f"super_resolution/final/{slug(row)}-seed{seed}"
        scores = evaluate.evaluate(str(folder), data=args.data)
        found[row] = {key: scores[key] for key in KEYS}
        print(f"{row}: {scores['hard']:.2f} dB", flush=True)
    return {"data": args.data, "seed": study.seeds[0], "rows": found}


if __name__ == "__main__":
    sys.exit(main())
