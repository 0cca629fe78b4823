"""Verifies an ONNX model in onnxruntime against the packed network.

A sum that is rounded differently can fall on the other side of a boundary of an
activation quantizer, and then the outputs of that image differ for real. So a network
with quantized activations is compared twice: from image to outputs, where some images
may differ; and step by step, where none may. For the latter onnxruntime also returns
the inputs and outputs of each quantizer. The packed network is run with those outputs
in place of its own: the inputs of its quantizers, and its own outputs, must then be
those of onnxruntime within the tolerance, and its quantizers must map the same inputs
to the same outputs.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from quantnet_jax.activations.sites import replace_quantizers
from quantnet_jax.deploy.predictor import Predictor

TOLERANCE = 1e-4
CHUNK = 50
"""Images at once, whose activations are in memory."""
REAL, QUANTIZED = "/real", "/quantized"
"""Endings of the names of tensors in the graph, after the path of a quantizer."""


def marked(apply: Callable) -> Callable:
    """`apply`, with names for the inputs and outputs of its activation quantizers."""

    def name(path, x, quantize):
        y = quantize(checkpoint_name(x, path + REAL))
        return checkpoint_name(y, path + QUANTIZED)

    def run(*args):
        with replace_quantizers(name):
            return apply(*args)

    return run


def check(
    content: bytes,
    predictor: Predictor,
    batches: Iterable[np.ndarray],
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compares an ONNX model in onnxruntime with the artifact's own predictor.

    Args:
      content: bytes of the ONNX file.
      predictor: of the artifact.
      batches: of images, uint8[N, H, W, C].
      tolerance: largest difference of outputs, relative to the largest output of an
        image where that is above 1.

    Returns:
      {'examples', 'difference': the largest in images that agree, 'differ': number of
      the others, which is 0 unless activations are quantized}.

    Raises:
      ImportError: onnxruntime is not installed.
      ValueError: onnxruntime does not run the model, or an image differs. With
        quantized activations: any step does, see above, or more than half of the images
        differ from image to outputs.
    """
    run = _session(content)
    paths = _quantizers(content)
    steps = _steps(content, predictor, paths) if paths else None
    examples = differ = 0
    difference = worst = 0.0
    for images in _chunks(batches):
        expected, found = predictor(images), run([images])["outputs"]
        apart, allowed = _distance(found, expected, tolerance)
        agree = apart <= allowed  # False for NaN
        examples, differ = examples + len(images), differ + int((~agree).sum())
        difference = max(difference, *apart[agree].tolist(), 0.0)
        worst = max(worst, *apart.tolist())
        if steps:
            steps(images, tolerance)
    if differ > (examples // 2 if paths else 0) or not examples:
        raise ValueError(
            f"onnxruntime's outputs of {differ} of {examples} images differ by more "
            f"than {tolerance:.2g} (up to {worst:.2g}); nothing was written"
        )
    return {"examples": examples, "difference": difference, "differ": differ}


def compare(
    content: bytes, run: Callable, inputs: tuple, batch: bool, tolerance: float
) -> None:
    """Compares an ONNX model in onnxruntime with the function that it was made of.

    Args:
      content: bytes of the ONNX file.
      run: the function.
      inputs: of it, arrays or shapes.
      batch: whether the batch size is free: it is then twice that of the inputs.
      tolerance: largest difference, relative to the largest of an output above 1.

    Raises:
      ValueError: an output differs, or onnxruntime does not run the model.
    """
    rng = np.random.default_rng(0)

    def value(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            integer = np.issubdtype(x.dtype, np.integer) or x.dtype == bool
            x = (
                rng.integers(0, 2, x.shape) if integer else rng.normal(size=x.shape)
            ).astype(x.dtype)
        x = np.asarray(x)
        return np.concatenate([x, x]) if batch and x.ndim else x

    inputs = jax.tree.map(value, inputs)
    expected = jax.tree.leaves(jax.device_get(jax.jit(run)(*inputs)))
    found = _session(content)(jax.tree.leaves(inputs))
    for (output, a), b in zip(found.items(), expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"output {output!r} is {a.dtype}{a.shape} in onnxruntime, "
                f"expected {b.dtype}{b.shape}; nothing was written"
            )
        a, b = (x.astype(np.float64) for x in (a, b))
        allowed = tolerance * max(
            1.0, np.max(np.abs(b), initial=0, where=np.isfinite(b))
        )
        if not np.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
            raise ValueError(
                f"output {output!r} differs in onnxruntime by up to "
                f"{np.nanmax(np.abs(a - b)):.2g}, expected {allowed:.2g}; nothing was "
                "written"
            )


def _steps(
    content: bytes, predictor: Predictor, paths: Sequence[str]
) -> Callable[[np.ndarray, float], None]:
    """The comparison step by step, `(images, tolerance)`; raises where one differs."""
    names = [path + end for end in (REAL, QUANTIZED) for path in paths]
    run = _session(_with_outputs(content, names))

    @jax.jit
    def guided(images, real, quantized):
        inputs, again = {}, {}

        def instead(path, x, quantize):
            inputs[path], again[path] = x, quantize(real[path])
            return quantized[path]

        with replace_quantizers(instead):
            outputs = predictor.apply(predictor.params, images)
        return outputs, inputs, again

    def same(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float):
        apart, allowed = _distance(found, expected, tolerance)
        wrong = int((~(apart <= allowed)).sum())
        if wrong:
            raise ValueError(
                f"{what} of {wrong} of {len(found)} images differ in onnxruntime by up "
                f"to {apart.max():.2g}, given equal inputs; nothing was written"
            )

    def compare(images: np.ndarray, tolerance: float) -> None:
        outputs, *rest = run([images]).values()
        rest = [np.moveaxis(x, 1, -1) if x.ndim == 4 else x for x in rest]
        real = dict(zip(paths, rest, strict=False))
        quantized = dict(zip(paths, rest[len(paths) :], strict=True))
        expected, inputs, again = jax.device_get(guided(images, real, quantized))
        for path in paths:
            same(f"the inputs of {path}", real[path], inputs[path], tolerance)
            same(f"the outputs of {path}", quantized[path], again[path], tolerance)
        same("the outputs", outputs, expected, tolerance)

    return compare


def _chunks(batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    for batch in batches:
        for start in range(0, len(batch), CHUNK):
            yield np.asarray(batch[start : start + CHUNK])


def _distance(found, expected, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Largest difference of each image, and how much is allowed."""
    found, expected = (np.reshape(x, (len(x), -1)) for x in (found, expected))
    largest = np.abs(expected).max(-1)
    return np.abs(found - expected).max(-1), tolerance * np.maximum(1.0, largest)


@contextlib.contextmanager
def _in_one_line():
    """Errors of onnxruntime, which has many kinds of them, as one kind."""
    try:
        yield
    except Exception as e:
        line = " ".join(str(e).split())
        raise ValueError(f"onnxruntime does not run the model: {line}") from None


def _session(content: bytes) -> Callable[[Sequence[np.ndarray]], dict[str, Any]]:
    """`inputs -> {name: output}` of a model in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, not printed as well
    with _in_one_line():
        session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    names, outputs = (
        [x.name for x in of] for of in (session.get_inputs(), session.get_outputs())
    )

    @_in_one_line()
    def run(inputs):
        found = session.run(outputs, dict(zip(names, inputs, strict=True)))
        return dict(zip(outputs, found, strict=True))

    return run


def _quantizers(content: bytes) -> list[str]:
    """Paths of the activation quantizers whose inputs and outputs have names."""
    import onnx

    nodes = onnx.load_model_from_string(content).graph.node
    names = [name for node in nodes for name in node.output if name.endswith(REAL)]
    return [name.removesuffix(REAL) for name in names]


def _with_outputs(content: bytes, names: Sequence[str]) -> bytes:
    """The model with tensors of its graph as further outputs."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
    known = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(known[name] for name in names)
    return model.SerializeToString()
