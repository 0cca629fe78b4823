"""What a report shows beyond the metrics of a run: sizes, kernels, predictions."""

import base64
import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from quantnet_jax import export
from quantnet_jax.common.files import as_path
from quantnet_jax.deploy import summary as summary_lib
from quantnet_jax.training.experiment import Experiment
from quantnet_jax.training.feed import with_rows
from quantnet_jax.training.state import TrainState, eval_state
from quantnet_jax.trees import paths

FILE = "exhibits.json"
MOST = 10_000
"""Examples that predictions are counted of."""
TILES = 8, 24
"""Input and output channels of a kernel that are shown."""


def collect(exp: Experiment, state: TrainState, outputs: Any = None) -> dict[str, Any]:
    """JSON data for `quantnet_jax.report`.

    Args:
      exp: of the run, in a single process.
      state: at its end.
      outputs: of the hard network for all test examples, None if not at hand.

    Returns:
      {'size': payload, float_bytes, compression, macs ({} of a network that adapts, and
      has no weights that ship), 'kernels': {path: images}} and,
      if the task has something to show of predictions, 'panels'.
    """
    found: dict[str, Any] = {
        "size": _size(exp, state) if exp.task.inner is None else {},
        "kernels": _kernels(exp, state),
    }
    if outputs is not None:
        examples = _examples(exp)
        count = len(next(iter(examples.values())))
        some = jax.tree.map(lambda x: x[:count], outputs)
        if panels := exp.task.panels(some, examples):
            for sample in panels["samples"]:
                if images := sample.get("images"):
                    sample["images"] = {k: _pixels(x) for k, x in images.items()}
                else:
                    sample["image"] = _pixels(examples["image"][sample.pop("index")])
            found["panels"] = panels
            if source := exp.config.init_from:
                compare(panels["samples"], source)
    return found


def compare(samples: Sequence[dict[str, Any]], source: str) -> None:
    """Puts what another run drew of the same examples before what this one did.

    Args:
      samples: of `collect`, changed in place; those without 'images' stay.
      source: folder of a run, such as the float one that this one began from; one
        without exhibits changes nothing.
    """
    folder = as_path(source)
    if not (folder / FILE).is_file():
        return
    name = json.loads((folder / "config.json").read_text())["quantizer"]["name"]
    name = "float" if name == "identity" else name
    drawn = json.loads((folder / FILE).read_text()).get("panels", {}).get("samples", ())
    for sample, other in zip(samples, drawn, strict=False):
        mine, theirs = sample.get("images", {}), other.get("images", {})
        same = sample.get("title") == other.get("title")
        if same and "network" in mine and "network" in theirs:
            pairs = list(mine.items())
            place = list(mine).index("network")
            pairs.insert(place, (name, theirs["network"]))
            sample["images"] = dict(pairs)


def _size(exp: Experiment, state: TrainState) -> dict[str, Any]:
    spec = export.make_spec(exp.config, exp.task, exp.feed)
    try:
        sizes = summary_lib.summarize_network(exp.deployed(state), spec)
    except ValueError:  # a network whose products cannot be counted
        return {}
    names = ("payload", "float_bytes", "compression", "macs")
    return {name: getattr(sizes, name) for name in names}


def _kernels(exp: Experiment, state: TrainState) -> dict[str, Any]:
    """{path: {'shape', 'before', 'after'}}: latent weights, and the codes that ship."""
    weights = paths.flatten(jax.device_get(eval_state(state).params["model"]))
    found = {}
    for path, codes in exp.codes(state).items():
        before, after = _tiles(weights[path]), _tiles(codes.astype(np.float32))
        before = before / max(np.abs(before).max(), 1e-30)
        after = 2 * after / max(int(codes.max()), 1) - 1
        found[path] = {"before": _image(before), "after": _image(after)}
    return found


def _tiles(w: np.ndarray) -> np.ndarray:
    """The first channels of a kernel, side by side: input down, output across."""
    w = np.asarray(w, np.float32)
    if w.ndim != 4:
        w = w.reshape(1, 1, -1, w.shape[-1] if w.ndim else 1)
    part = w[:, :, : TILES[0], : TILES[1]]
    height, width, rows, columns = part.shape
    return part.transpose(2, 0, 3, 1).reshape(rows * height, columns * width)


def _image(values: np.ndarray) -> dict[str, Any]:
    """Values in [-1, 1] as bytes 0 to 254, 127 for zero."""
    return _pixels(np.round(127 * (1 + np.clip(values, -1, 1))).astype(np.uint8))


def _pixels(image: np.ndarray) -> dict[str, Any]:
    image = np.asarray(image)[:: -(-image.shape[0] // 96), :: -(-image.shape[1] // 96)]
    data = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
    return {"shape": list(image.shape), "data": data}


def _examples(exp: Experiment) -> dict[str, np.ndarray]:
    """The first test examples, in order."""
    rows: dict[str, list[np.ndarray]] = {}
    batches = itertools.islice(exp.feed.test(), -(-MOST // exp.config.eval_batch_size))
    for batch in batches:
        found = with_rows(batch, exp.feed.test_data)
        real = np.asarray(found.pop("mask")) > 0
        for name, values in found.items():
            rows.setdefault(name, []).append(np.asarray(values)[real])
    return {name: np.concatenate(parts) for name, parts in rows.items()}
