"""Exports any tree with `QTensor` leaves, and verifies the files before they replace
those of an earlier export."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.export
import numpy as np

from quantnet_jax.common.files import as_path, in_bucket, write_atomic
from quantnet_jax.core.qtensor import is_qtensor
from quantnet_jax.deploy import onnx as onnx_files
from quantnet_jax.deploy import stablehlo
from quantnet_jax.deploy.predictor import load, save
from quantnet_jax.deploy.spec import NetworkSpec
from quantnet_jax.trees.tree import dequantize_tree

PyTree = Any
FILES = ("model.safetensors", "model.stablehlo", "model.onnx")
TOLERANCE = 1e-4
UNVERIFIED = ".unverified-"


def export_tree(
    tree: PyTree,
    spec: NetworkSpec,
    folder: str | os.PathLike,
    *,
    batches: Callable[[], Iterable[np.ndarray]],
    predict: Callable[[PyTree], PyTree] | None = None,
    same: Callable[[Any, Any], np.ndarray] | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Writes 'model.safetensors' and 'model.stablehlo', and verifies both.

    Files are written to a temporary folder and moved once they are verified; if
    anything fails, those of an earlier export stay.

    Args:
      tree: parameters of `spec.network()` (BatchNorm folded, see
        `quantnet_jax.models.fold`) with `QTensor` and float leaves, whoever made it.
      spec: what the network is; with `floats='float16'` the files are compared with the
        network whose float leaves are rounded likewise.
      folder: to write to, perhaps of a bucket; created if missing.
      batches: `() -> uint8 images (N, H, W, C), ...` that verify the files.
      predict: `float parameters -> outputs` for all those images, on the host; default:
        `spec.network()`, jitted.
      same: `(outputs, outputs) -> bool (N,)`, whether two programs decide alike, such
        as `Task.same`; default: equal within 1e-4 of the largest output of an example.
      onnx: write and check 'model.onnx', too.

    Returns:
      {'outputs': {'hard', 'packed', 'exported'} for all images, 'differ' (examples that
      packed decides otherwise than hard; 0 unless floats are rounded), 'popcount'
      (examples that bit counts decide otherwise than packed; None where no layer can
      count), 'onnx' (as `quantnet_jax.deploy.onnx.check.check`, None unless asked for),
      'examples', 'payload' (bytes of tensors), 'file' (bytes of model.safetensors),
      'folder'}.

    Raises:
      ValueError: an example is decided otherwise; nothing is written then.
      ImportError: `onnx`, and its packages are not installed.
    """
    if in_bucket(folder):
        target = as_path(folder)
        with tempfile.TemporaryDirectory() as local:
            options: dict[str, Any] = dict(predict=predict, same=same, onnx=onnx)
            made = export_tree(tree, spec, local, batches=batches, **options)
            for path in (pathlib.Path(local, name) for name in FILES):
                if path.exists():
                    write_atomic(target / path.name, path.read_bytes())
                else:
                    (target / path.name).unlink(missing_ok=True)
        return made | {"folder": os.fspath(target)}
    folder, tree = pathlib.Path(folder), jax.device_get(tree)
    predict = predict or _plain(spec, batches)
    same = same or _close
    hard = wanted = predict(dequantize_tree(tree))
    if spec.floats != "float32":
        wanted = predict(dequantize_tree(_rounded(tree, spec.floats)))
    examples = len(jax.tree.leaves(hard)[0])
    differ = lambda one, two: examples - int(np.sum(np.asarray(same(one, two))))
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{UNVERIFIED}*"):  # of an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNVERIFIED, dir=folder) as beside:
        weights, program, graph = (pathlib.Path(beside) / name for name in FILES)
        sizes = save(weights, tree, spec)
        predictor = load(weights, popcount=False)
        program.write_bytes(stablehlo.of_predictor(predictor))
        reloaded = jax.jit(jax.export.deserialize(bytearray(program.read_bytes())).call)
        packed, exported = _outputs(predictor, batches), _outputs(reloaded, batches)
        wrong = {"packed": differ(packed, wanted), "exported": differ(exported, wanted)}
        if any(wrong.values()):
            raise ValueError(
                f"of {examples} predictions {wrong['packed']} of model.safetensors "
                f"and {wrong['exported']} of model.stablehlo differ from hard "
                "evaluation; nothing was written"
            )
        counted = checked = None
        if predictor.countable:
            counting = load(weights, popcount=True)
            counted = differ(_outputs(counting, batches), packed)
            sizes = save(weights, tree, dataclasses.replace(spec, popcount=not counted))
        if onnx:
            checked = onnx_files.write(graph, predictor, batches())["check"]
        for path in (weights, program, graph):
            if path.exists():
                os.replace(path, folder / path.name)
            else:  # that of an earlier export belongs to another network
                (folder / path.name).unlink(missing_ok=True)
    return {
        "outputs": {"hard": hard, "packed": packed, "exported": exported},
        "differ": differ(packed, hard),
        "popcount": counted,
        "onnx": checked,
        "examples": examples,
        **sizes,
        "folder": str(folder),
    }


def _outputs(run: Callable, batches: Callable) -> PyTree:
    """Outputs for all images, on the host."""
    rows = [jax.tree.map(np.asarray, run(images)) for images in batches()]
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)


def _plain(spec: NetworkSpec, batches: Callable) -> Callable[[PyTree], PyTree]:
    model = spec.network()
    apply = jax.jit(lambda p, x: model.apply({"params": p}, spec.normalize(x)))
    return lambda params: _outputs(lambda x: apply(params, x), batches)


def _close(one: PyTree, other: PyTree) -> np.ndarray:
    """Whether the outputs of each example are equal within `TOLERANCE`."""

    def leaf(a, b):
        a, b = (np.reshape(x, (len(x), -1)) for x in (a, b))
        return np.abs(a - b).max(-1) <= TOLERANCE * np.maximum(1, np.abs(b).max(-1))

    return np.all(jax.tree.leaves(jax.tree.map(leaf, one, other)), axis=0)


def _rounded(tree: PyTree, dtype: str) -> PyTree:
    """The tree with its float leaves as a file of that dtype returns them."""
    one = lambda x: x if is_qtensor(x) else x.astype(dtype).astype(np.float32)
    return jax.tree.map(one, tree, is_leaf=is_qtensor)
