"""Exports a run: packed weights and StableHLO, verified against hard evaluation.

    python -m quantnet_jax.export DIR [--out=DIR] [--step=latest|best|N]
        [--float=float32|float16] [--onnx] [--bn]

Writes `model.safetensors` (packed codes, levels, scales, folded normalizations, float
tensors) and `model.stablehlo` (the same network as a program with the packed bits
inside, for CPU, CUDA and TPU, any batch size). Both predict every test image; one
prediction that differs from hard evaluation is an error, and nothing is written. Layers
that can count bits do so as well, and the file records whether all predictions stay the
same. --onnx writes `model.onnx`, checked on the same images. --bn exports what
evaluation calls hard + BN: BatchNorm recalibrated for the hard weights.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from quantnet_jax import __version__, deploy, evaluate, export_onnx
from quantnet_jax.common import command
from quantnet_jax.common.files import as_path, check_place
from quantnet_jax.deploy.format.artifact import FLOATS
from quantnet_jax.deploy.stablehlo import WINDOW
from quantnet_jax.logging import records
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.tasks import Source, Task

if TYPE_CHECKING:
    from quantnet_jax.config import Config
    from quantnet_jax.training.experiment import Experiment
    from quantnet_jax.training.feed import Feed
    from quantnet_jax.training.state import TrainState


def export(
    workdir: str,
    out: str | None = None,
    step: str | int = "latest",
    floats: str = "float32",
    onnx: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """Exports one checkpoint of a run.

    Args:
      workdir: folder of the run.
      out: folder to write to; default WORKDIR/export.
      step: 'latest', 'best' or a number.
      floats: dtype of float tensors in the file.
      onnx: write and check an ONNX model, too.
      bn: recalibrate the BatchNorm statistics for the hard weights on training images.

    Returns:
      As `export_state`, and 'step'; result.json of the run gets 'packed' and 'exported'
      if it is of the same step and nothing was rounded or recalibrated.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: the run cannot be read, or a prediction differs.
      ImportError: `onnx`, and its packages are not installed.
    """
    restored = evaluate.restore(workdir, step)
    return export_restored(*restored, workdir, out, floats, onnx, bn)


def export_restored(
    exp: "Experiment",
    state: "TrainState",
    step: int,
    workdir: str,
    out: str | None = None,
    floats: str = "float32",
    onnx: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """What `export` does, of what `evaluate.restore` returns."""
    folder = out or os.path.join(workdir, "export")
    result = export_state(exp, state, folder, floats, onnx, bn)
    del result["outputs"]
    path = as_path(workdir) / "result.json"
    if path.is_file() and step == exp.steps and floats == "float32" and not bn:
        old = json.loads(path.read_text())
        records.write_json(path, old | {k: result[k] for k in ("packed", "exported")})
    return {"step": step, **result}


def export_state(
    exp: "Experiment",
    state: "TrainState",
    folder: str | os.PathLike,
    floats: str = "float32",
    onnx: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """Exports one state by `deploy.export_tree`, verified on every test image.

    Returns:
      As `deploy.export_tree`, with 'hard', 'packed', 'exported': of 'metric', the
      task's primary one.

    Raises:
      ValueError, ImportError: as `deploy.export_tree`.
    """
    params, method = exp.deployed(state, bn), exp.config.quantizer.name
    made = export_params(exp, params, folder, method, floats, onnx)
    values = {k: exp.scoring.measure(x) for k, x in made["outputs"].items()}
    return {"metric": exp.task.primary._asdict(), **values, **made}


def export_params(
    exp: "Experiment",
    params: Any,
    folder: str | os.PathLike,
    method: str,
    floats: str = "float32",
    onnx: bool = False,
) -> dict[str, Any]:
    """What `export_state` does, of parameters of the folded network.

    Args:
      exp: whose network and test images they are.
      params: tree with `QTensor` leaves.
      folder, floats, onnx: as of `export`.
      method: that quantized them.

    Returns:
      As `deploy.export_tree`.

    Raises:
      ValueError, ImportError: as `deploy.export_tree`.
    """
    if exp.task.inner is not None:
        raise ValueError(
            f"task.name={exp.config.task.name!r}: its network adapts to each example, "
            "and has no weights that ship; save those of an example by `qn.save`"
        )
    return deploy.export_tree(
        params,
        spec_of(exp, method, floats),
        folder,
        batches=lambda: test_images(exp.feed),
        predict=lambda params: exp.scoring.predict(exp.runner.place(params)),
        same=exp.task.same,
        onnx=onnx,
    )


def spec_of(
    exp: "Experiment", method: str, floats: str = "float32"
) -> deploy.NetworkSpec:
    """The spec of the network of an experiment that a method quantized."""
    origin = {"method": method, "data": exp.config.data.name} | provenance()
    return make_spec(exp.config, exp.task, exp.feed, floats, origin)


def make_spec(
    config: "Config",
    task: Task,
    source: "Source | Feed",
    floats: str = "float32",
    origin: dict[str, Any] | None = None,
) -> deploy.NetworkSpec:
    """The spec of the network of a configuration.

    Args:
      config: of the run.
      task: of the configuration.
      source: shape, mean and std of the images; their `info` may have 'ink'.
      floats: dtype of float tensors in the file.
      origin: how the network was made.
    """
    from quantnet_jax.training import parts

    origin, name = dict(origin or {}), config.activation.name
    of_files = {k: source.info[k] for k in ("ink",) if k in source.info}
    activation = None
    if name:
        sites = list(parts.activation_sites(config))
        activation = {"name": name, "sites": sites, **config.activation[name].to_dict()}
        if rules := parts.activation_rules(config):
            activation["rules"] = rules
    versions = origin.get("versions", {}) | {"quantnet_jax": __version__}
    return deploy.NetworkSpec(
        model=parts.model_options(config),
        **task.model_options,
        dtype=config.dtype,
        activation=activation,
        shape=source.shape,
        mean=source.mean,
        std=source.std,
        floats=floats,
        task=config.task.name,
        info=of_files | dict(task.info),
        origin=origin | {"versions": versions},
    )


def test_images(feed: "Feed") -> Iterator[np.ndarray]:
    """uint8 images of every test batch, without padding."""
    from quantnet_jax.training.feed import with_rows

    for batch in feed.test():
        found = with_rows(batch, feed.test_data)
        yield np.asarray(found["image"])[np.asarray(found["mask"]) > 0]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("export", __doc__)
    parser.add_subject("workdir", "DIR", "folder of the run")
    option = parser.add_argument
    option("--out", type=command.folder, help="folder to write to; WORKDIR/export")
    option(
        "--step", default="latest", type=command.step, metavar="STEP",
        help="'latest', 'best' or a number of steps",
    )  # fmt: skip
    option("--float", default="float32", choices=FLOATS, help="dtype of float tensors")
    option("--onnx", action="store_true", help="write and check model.onnx, too")
    option(
        "--bn", action="store_true", help="recalibrate BatchNorm for the hard weights"
    )

    def work(args):
        check_place(args.out or args.workdir)
        with command.phase(f"reading {args.workdir} and its data"):
            restored = evaluate.restore(args.workdir, args.step)
        count = f"{restored[0].test_size:,} examples"
        with command.phase(f"compiling, then verifying the export on {count}"):
            result = export_restored(
                *restored, args.workdir, args.out, args.float, args.onnx, args.bn
            )
        _print(result)

    return command.run(parser, work, argv)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['folder']}, step {result['step']}, {result['examples']} images")
    unit = unit_of(result["metric"])
    for name in ("hard", "packed", "exported"):
        print(f"{name:10s}{unit.value(result[name]):>8s}")
    print(
        f"payload {result['payload']:,} bytes, model.safetensors {result['file']:,}; "
        f"{result['differ']} predictions differ from hard evaluation"
    )
    if result["popcount"] is not None:
        chosen = "will not" if result["popcount"] else "will"
        print(f"by bit counts {result['popcount']} differ: `load` {chosen} choose them")
    print(f"model.stablehlo: {WINDOW}")
    if result["onnx"] is not None:
        print(f"model.onnx: {export_onnx.check_text(result['onnx'])}")


if __name__ == "__main__":
    sys.exit(main())
