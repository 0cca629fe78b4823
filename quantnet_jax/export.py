"""Writes what ships of a run: packed weights, StableHLO; and proves that they agree.

    python -m quantnet_jax.export --workdir=DIR [--out=DIR] [--step=latest|best|N]
        [--float=float32|float16] [--onnx] [--bn]

Writes `model.safetensors` (packed codes, levels, scales, folded normalizations, float
rest) and `model.stablehlo` (the same network as a program with the packed bits inside,
for CPU, CUDA and TPU, any batch size). Both predict every test image; one prediction
that differs from hard evaluation is an error, and nothing is kept. Where layers can
count bits, they do so once more, and the file says whether all predictions stayed.
With --onnx `model.onnx` is written too and checked on the same images. --bn ships what
evaluation calls hard + BN: normalizations measured on training images anew.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from quantnet_jax import __version__, deploy, evaluate, export_onnx
from quantnet_jax.core.qtensor import is_qtensor
from quantnet_jax.core.tree import dequantize_tree
from quantnet_jax.logging import records
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.training import experiment, parts

FLOATS = ("float32", "float16")
PLATFORMS = ("cpu", "cuda", "tpu")
FILES = ("model.safetensors", "model.stablehlo", "model.onnx")
WINDOW = (
    f"made by jax {jax.__version__}; runs by a jaxlib up to three weeks older, or six "
    "months newer"
)


def export(
    workdir: str,
    out: str | None = None,
    step: str | int = "latest",
    dtype: str = "float32",
    onnx: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """Exports one checkpoint of a run.

    Args:
      workdir: folder of the run.
      out: folder to write to; default WORKDIR/export.
      step: 'latest', 'best' or a number.
      dtype: of the float rest in the file.
      onnx: write and check an ONNX model too.
      bn: re-estimate the BatchNorm statistics for the hard weights, from training
        images: what evaluation scores as 'hard + BN'.

    Returns:
      As `export_state`; result.json of the run gets 'packed' and 'exported' if it is of
      the same step and nothing was rounded or re-estimated.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: the run cannot be read, or a prediction differs.
      ImportError: `onnx`, and its packages are not installed.
    """
    exp, state, number = evaluate.restore(workdir, step)
    folder = pathlib.Path(out) if out else pathlib.Path(workdir) / "export"
    result = export_state(exp, state, folder, dtype, onnx, bn)
    path = pathlib.Path(workdir) / "result.json"
    if path.is_file() and number == exp.steps and dtype == "float32" and not bn:
        old = json.loads(path.read_text())
        records.write_json(path, old | {k: result[k] for k in ("packed", "exported")})
    return {"step": number, **result}


def export_state(
    exp: experiment.Experiment,
    state,
    folder: pathlib.Path,
    dtype: str = "float32",
    onnx: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """Writes and verifies the files of one state.

    They get their names once they are verified; until then they lie in a folder beside.
    With float16 they are held to the hard network whose float rest is rounded likewise.

    Returns:
      {'hard', 'packed', 'exported' (accuracies), 'differ' (predictions that differ from
      hard; 0 unless `dtype` is 'float16'), 'popcount' (predictions by bit counts that
      differ from packed; None where no layer can count), 'onnx' (as
      `export_onnx.check`; None unless asked for), 'examples', 'payload' (bytes of
      tensors), 'file' (bytes of model.safetensors), 'folder'}.

    Raises:
      ValueError: the predictions differ; no file is there then, an older one neither.
      ImportError: `onnx`, and its packages are not installed.
    """
    hard_tree = jax.device_get(exp.deployed(state, bn))
    predict = lambda tree: exp.predict(exp.runner.place(dequantize_tree(tree)))
    hard = wanted = predict(hard_tree)
    folder.mkdir(parents=True, exist_ok=True)
    checked = None
    with (
        tempfile.TemporaryDirectory(prefix=".unverified-", dir=folder) as beside,
        _gone(folder),
    ):
        weights, program, graph = (pathlib.Path(beside) / name for name in FILES)
        spec, params = make_spec(exp), deploy.pack_tree(hard_tree)
        sizes = deploy.write(weights, params, spec, dtype=dtype)
        if dtype != "float32":
            wanted = predict(_rounded(hard_tree, dtype))
        predictor = deploy.load(weights, popcount=False)
        program.write_bytes(stablehlo(predictor))
        reloaded = jax.jit(jax.export.deserialize(bytearray(program.read_bytes())).call)
        labels, packed = predict_all(exp, predictor.logits)
        _, exported = predict_all(exp, reloaded)
        differ = lambda one, two: int((one.argmax(-1) != two.argmax(-1)).sum())
        wrong = {"packed": differ(packed, wanted), "exported": differ(exported, wanted)}
        if any(wrong.values()):
            raise ValueError(
                f"of {len(hard)} predictions {wrong['packed']} of model.safetensors "
                f"and {wrong['exported']} of model.stablehlo differ from hard "
                "evaluation; nothing was kept"
            )
        counted = None
        if predictor.countable:
            counting = deploy.load(weights, popcount=True)
            counted = differ(predict_all(exp, counting.logits)[1], packed)
            spec |= {"popcount": not counted}
            sizes = deploy.write(weights, params, spec, dtype=dtype)
        if onnx:
            images = (images[real] for images, _, real in test_batches(exp))
            checked = export_onnx.export(weights, graph, images)["check"]
        for path in (weights, program, graph):
            (folder / path.name).unlink(missing_ok=True)
            if path.exists():
                os.replace(path, folder / path.name)
    score = lambda logits: float(np.mean(logits.argmax(-1) == labels))
    return {
        "hard": score(hard),
        "packed": score(packed),
        "exported": score(exported),
        "differ": differ(packed, hard),
        "popcount": counted,
        "onnx": checked,
        "examples": len(hard),
        **sizes,
        "folder": str(folder),
    }


@contextlib.contextmanager
def _gone(folder: pathlib.Path):
    """Where its body fails no file is left in the folder, an older one neither."""
    try:
        yield
    except BaseException:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        raise


def _rounded(hard_tree: Any, dtype: str) -> Any:
    """The tree with its float rest as a file of that dtype gives it back."""
    one = lambda x: x if is_qtensor(x) else x.astype(dtype).astype(np.float32)
    return jax.tree.map(one, hard_tree, is_leaf=is_qtensor)


def make_spec(exp: experiment.Experiment) -> dict[str, Any]:
    """What an artifact says of its network: plain data."""
    config, feed, origin = exp.config, exp.feed, provenance()
    origin["versions"] |= {"quantnet_jax": __version__}
    activation = None
    if config.activation.name:
        name = config.activation.name
        activation = {"name": name, **config.activation[name].to_dict()}
    return {
        "model": parts.model_options(config) | {"dtype": config.dtype},
        "activation": activation,
        "input": {
            "shape": list(feed.shape),
            "mean": [float(x) for x in feed.mean],
            "std": [float(x) for x in feed.std],
        },
        "classes": list(exp.task.info["classes"]),
        "method": config.quantizer.name,
        "data": config.data.name,
        **origin,
    }


def stablehlo(predictor: deploy.Predictor) -> bytes:
    """The network as a serialized `jax.export` program: uint8 images -> logits.

    The packed weights are constants in it; the batch size is symbolic. Whoever loads it
    needs jax alone, within its window (`WINDOW`, by the compatibility guarantees of
    `jax.export`). A predictor that counts bits
    gives a program that does, on every device.
    """
    run = jax.jit(lambda images: predictor.apply(predictor.params, images))
    shape = (*jax.export.symbolic_shape("batch"), *predictor.shape)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(jax.export.export(run, platforms=PLATFORMS)(images).serialize())


def predict_all(
    exp: experiment.Experiment, logits: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, logits) of all test images, in batches of the evaluation's size."""
    rows, labels = [], []
    for images, label, real in test_batches(exp):
        rows.append(np.asarray(logits(images))[real])
        labels.append(label[real])
    return np.concatenate(labels), np.concatenate(rows)


def test_batches(exp: experiment.Experiment) -> Iterator[tuple[np.ndarray, ...]]:
    """(uint8 images, labels, which of them are no padding) of every test batch."""
    for batch in exp.feed.test():
        if "image" in batch:
            images, label = batch["image"], batch["label"]
        else:
            rows = np.asarray(batch["index"])
            images, label = (exp.feed.test_data[k][rows] for k in ("image", "label"))
        yield np.asarray(images), np.asarray(label), np.asarray(batch["mask"]) > 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.export", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", help="folder to write to; WORKDIR/export")
    parser.add_argument(
        "--step", default="latest", help="'latest', 'best' or a number of steps"
    )
    parser.add_argument(
        "--float", default="float32", choices=FLOATS, help="dtype of the float rest"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="write and check model.onnx, too"
    )
    parser.add_argument(
        "--bn", action="store_true", help="re-estimate BatchNorm for the hard weights"
    )
    args = parser.parse_args(argv)
    step = int(args.step) if args.step.isdigit() else args.step
    try:
        result = export(args.workdir, args.out, step, args.float, args.onnx, args.bn)
    except (ValueError, FileNotFoundError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{result['folder']}, step {result['step']}, {result['examples']} images")
    for name in ("hard", "packed", "exported"):
        print(f"{name:10s}{100 * result[name]:7.2f}%")
    print(
        f"payload {result['payload']:,} bytes, model.safetensors {result['file']:,}; "
        f"{result['differ']} predictions differ from hard evaluation"
    )
    if result["popcount"] is not None:
        chosen = "will not" if result["popcount"] else "will"
        print(f"by bit counts {result['popcount']} differ: `load` {chosen} choose them")
    print(f"model.stablehlo: {WINDOW}")
    if result["onnx"] is not None:
        print(f"model.onnx: {export_onnx.told(result['onnx'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
