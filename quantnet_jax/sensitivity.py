"""What each layer loses at few bits, and rules with the widths for a byte budget.

    python -m quantnet_jax.sensitivity DIR [--quantizer=lsq] [--bits 2 3 4]
        [--layers=inner] [--budget=BYTES] [--out=FILE]

Scores a float run on its test images with one layer alone quantized after training, at
every width. --budget, in packed bytes of these layers, chooses the widths that lose
least, as if losses added up, and prints the flags to train with. The choice has seen
those images: give a run with `data.validation_size`, whose test images are held out of
the training images, and test on others.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from quantnet_jax import evaluate, models, quantizers
from quantnet_jax.analysis.sensitivity import Choice, Option, measure, propose, rules
from quantnet_jax.common import command
from quantnet_jax.common.files import check_place
from quantnet_jax.common.patterns import check_pattern
from quantnet_jax.core.quantizer import identity
from quantnet_jax.logging import records
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.posttrain import run as runs
from quantnet_jax.training import build_check
from quantnet_jax.trees.rules import Rule, plan


def sensitivity(
    workdir: str,
    quantizer: str = "lsq",
    bits: Sequence[int] = (2, 3, 4),
    *,
    layers: str = "inner",
    budget: int | None = None,
) -> dict[str, Any]:
    """Measures, and chooses; arguments as those of the command line.

    Returns:
      'metric' and 'float' (its value), 'options' ({path: {bits: {'score', 'nbytes'}}}),
      with a budget 'bits' (of the default rule), 'rules' (`config.rules`, for the other
      layers), 'loss', 'nbytes'; and where it was run.

    Raises:
      FileNotFoundError: no such run.
      ValueError: the run is no float run, an option is impossible, or not even the
        fewest bits fit the budget.
    """
    pattern = models.kernel_pattern(layers)
    check_pattern("--layers", pattern)
    with build_check.named(f"--quantizer={quantizer}"):
        made = {str(b): quantizers.create(quantizer, bits=b) for b in bits}
    run = runs.of_state(*evaluate.restore(workdir)[:2])
    metric = run.exp.task.primary
    sign = 1.0 if metric.higher_is_better else -1.0
    score = lambda params: sign * run.score(run.folded(params))
    found = plan([Rule(pattern, identity())], run.params)
    paths = sorted(path for bucket in found for path in bucket.paths)
    whole = score(run.params)
    options = measure(score, run.params, paths, made)
    result = {
        "workdir": workdir,
        **provenance(),
        "quantizer": quantizer,
        "budget": budget,
        "metric": metric._asdict(),
        "float": sign * whole,
        "options": {p: _plain(of_layer, sign) for p, of_layer in options.items()},
    }
    if budget is not None:
        choice = propose(options, whole, budget)
        result |= _chosen(choice, quantizer)
    return result


def _plain(of_layer: dict[str, Option], sign: float) -> dict[str, dict[str, float]]:
    return {
        bits: {"score": sign * option.score, "nbytes": option.nbytes}
        for bits, option in of_layer.items()
    }


def _chosen(choice: Choice, quantizer: str) -> dict[str, Any]:
    """Most layers have the width of the default rule, the others rules of their own."""
    (most, _), *_ = Counter(choice.labels.values()).most_common()
    others = {p: b for p, b in choice.labels.items() if b != most}
    rows = {b: {"quantizer": quantizer, "bits": int(b)} for b in others.values()}
    made = rules(choice._replace(labels=others), rows)
    sizes = {"loss": choice.loss, "nbytes": choice.nbytes}
    return {"bits": int(most), "rules": made, **sizes}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("sensitivity", __doc__)
    parser.add_subject("workdir", "DIR", "folder of the float run")
    option = parser.add_argument
    option("--quantizer", default="lsq", help="a member that has these widths")
    option("--bits", default=[2, 3, 4], type=int, nargs="+", help="widths to try")
    option("--layers", default="inner", help="inner, all, no_shortcut, or a pattern")
    option("--budget", type=int, metavar="BYTES", help="of these layers, packed")
    option("--out", help="also write the numbers to this JSON file")

    def work(args):
        if args.out:
            check_place(args.out)
        options = {k: v for k, v in vars(args).items() if k not in ("debug", "out")}
        with command.phase(f"scoring {args.workdir}, one layer after another"):
            result = sensitivity(**options)
        _print(result)
        if args.out:
            records.write_json(args.out, result)

    return command.run(parser, work, argv)


def _print(result: dict[str, Any]) -> None:
    unit = unit_of(result["metric"])
    print(f"float {unit.value(result['float'])}")
    for path, of_layer in result["options"].items():
        cells = [
            f"{bits} bits {unit.value(x['score'])} in {x['nbytes']:,} bytes"
            for bits, x in of_layer.items()
        ]
        print(f"{path}: {', '.join(cells)}")
    if "rules" in result:
        name, rows = result["quantizer"], str(result["rules"])
        print(
            f"{result['nbytes']:,} bytes by --config.quantizer.name={name} "
            f"--config.quantizer.{name}.bits={result['bits']} --config.rules={rows!r}"
        )


if __name__ == "__main__":
    sys.exit(main())
