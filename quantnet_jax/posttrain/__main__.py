"""Quantizes a trained float run, without training.

    python -m quantnet_jax.posttrain DIR [--method="gpfq(bits=4, per='tensor')"]
        [--bits=4] [--layers=inner] [--activation-bits=8] [--images=1024]
        [--positions=1.0] [--out=DIR] [--no-export]

Scores the float network, the quantized one, and that with recalibrated BatchNorm, which
is exported to DIR (default: WORKDIR/posttrain) as `python -m quantnet_jax.export` does,
verified on every test image, with a posttrain.json. An interrupted command resumes with
the layers that it had finished. --activation-bits quantizes the inputs of inner
convolutions as well, up to the --quantile of |x| (1.0: the largest).
"""

import pathlib
import sys
from typing import Any

from quantnet_jax import evaluate, export, models, posttrain
from quantnet_jax.common import command
from quantnet_jax.common.patterns import check_pattern
from quantnet_jax.core.qtensor import is_qtensor
from quantnet_jax.logging import records
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.posttrain import run as runs
from quantnet_jax.trees.tree import Rule, flatten

METHOD = "gpfq(bits=4)"


def quantize(
    workdir: str,
    method: str = METHOD,
    bits: int | None = None,
    *,
    layers: str = "inner",
    activation_bits: int = 0,
    quantile: float = 1.0,
    images: int = 1024,
    positions: float = 1.0,
    out: str | None = None,
    exports: bool = True,
) -> dict[str, Any]:
    """Quantizes, scores and exports; arguments as those of the command line.

    Returns:
      What posttrain.json holds: 'method', 'float', 'hard', 'hard_bn' (means of the
      primary metric), 'layers' ({path: relative output error or None}), ...

    Raises:
      FileNotFoundError: no such run.
      ValueError: the run is no float run, or an option is impossible.
    """
    solver = posttrain.create(method, **({} if bits is None else {"bits": bits}))
    pattern = models.kernel_pattern(layers)
    check_pattern("--layers", pattern)
    exp, state, step = evaluate.restore(workdir)
    run = runs.of_state(exp, state, images)
    folder = pathlib.Path(out or pathlib.Path(workdir) / "posttrain")
    errors: dict[str, float | None] = {}

    def report(line: posttrain.Layer) -> None:
        errors[line.path] = line.error
        print(line, file=sys.stderr, flush=True)

    rules = [Rule(pattern, solver)]
    made = run.quantize(
        rules, positions=positions, folder=folder / "layers", report=report
    )
    result = {"workdir": workdir, "step": step, "method": repr(solver)}
    result["float"] = run.score(run.folded(run.params))
    if activation_bits:
        run = run.with_activations(made, activation_bits, quantile)
        made = run.params
    shipped = run.folded(made, run.recalibrated(made))
    result |= {
        "activation_bits": activation_bits or None,
        "images": images,
        "positions": positions,
        "hard": run.score(run.folded(made)),
        "hard_bn": run.score(shipped),
        "metric": exp.task.primary._asdict(),
        "layers": errors,
        "quantized": sum(map(is_qtensor, flatten(made).values())),
        **provenance(),
    }
    if exports:
        found = export.export_params(run.exp, shipped, folder, repr(solver))
        result |= {k: found[k] for k in ("payload", "file", "differ", "folder")}
    records.write_json(folder / "posttrain.json", result)
    return result


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("posttrain", __doc__)
    parser.add_subject("workdir", "DIR", "folder of the float run")
    option = parser.add_argument
    known = ", ".join(posttrain.METHODS)
    option("--method", default=METHOD, help=f"{known}; alone, or as a call")
    option("--bits", type=int, help="of weights, in place of those of --method")
    option("--layers", default="inner", help="inner, all, no_shortcut, or a pattern")
    option("--activation-bits", default=0, type=int, help="0: float activations")
    option("--quantile", default=1.0, type=float, help="of |x|, for activations")
    option("--images", default=1024, type=int, help="training images to calibrate on")
    option("--positions", default=1.0, type=float, help="fraction of places to use")
    option("--out", type=command.folder, help="folder to write to; WORKDIR/posttrain")
    option("--no-export", action="store_true", help="only score")

    def work(args):
        options = {
            k: v for k, v in vars(args).items() if k not in ("debug", "no_export")
        }
        _print(quantize(**options, exports=not args.no_export))

    return command.run(parser, work, argv)


def _print(result: dict[str, Any]) -> None:
    unit = unit_of(result["metric"])
    print(f"{result['method']}, {result['quantized']} tensors")
    for name, text in (("float", "float"), ("hard", "hard"), ("hard_bn", "hard + BN")):
        print(f"{text:10s}{unit.value(result[name]):>8s}")
    if "folder" in result:
        print(f"export: {result['folder']}, payload {result['payload']:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
