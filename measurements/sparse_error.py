"""Quantization error of the outputs of the layers, for the runs of the study sparse.

    python -m measurements.sparse_error --work=runs    # after the study, where it ran

See `quantnet_jax.analysis.output_error`; the stem is float and left out.
"""

import math
import pathlib
import statistics
import sys

from benchmarks import timing
from quantnet_jax import evaluate
from quantnet_jax.analysis.output_error import output_errors
from quantnet_jax.experiments import grid, pieces, results

NAME = "sparse"


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser(
        "measurements.sparse_error", __doc__, repeats=2, load=math.inf
    )
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--study", default=NAME)
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """{row: {'seeds', 'errors': mean over layers of each seed, 'layers'}}."""
    study = grid.load(args.study)
    records = results.of_study(args.study, study, args.results)
    options, rows = pieces.Options(work=args.work), {}
    for row in study.rows:
        seeds, layers = [], []
        for seed in study.seeds:
            run = grid.final_run(study, records, row, seed)
            if grid.record_of(records, run):
                folder = pieces.workdir(args.study, run, options)
                exp, state, _ = evaluate.restore(str(folder))
                found = output_errors(exp, state)
                layers.append({k: v for k, v in found.items() if k != "stem"})
                seeds.append(seed)
        if seeds:
            errors = [statistics.mean(x.values()) for x in layers]
            rows[row] = {"seeds": seeds, "errors": errors, "layers": layers}
            print(f"{row:24s}{statistics.mean(errors):.4f}", flush=True)
    if not rows:
        raise ValueError(f"--results={args.results}: no record of {args.study!r}")
    return {"study": args.study, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
