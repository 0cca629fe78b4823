"""Terms of the loss that need more than outputs and targets.

A term is `term(context) -> float32 scalar`, made by a factory and added to the loss
with a weight. A configuration lists them: `terms = ({"name": "kurtosis", "weight": 1.0,
"target": 1.8},)`; a term is added by a factory here and a row in `TERMS`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from quantnet_jax.common.limits import Number, Sequence, Text, checked
from quantnet_jax.core import regularizers
from quantnet_jax.tasks.embeddings import distances, normalized
from quantnet_jax.tasks.layer_inputs import SiteInput, correlation, output_error
from quantnet_jax.tasks.term_paths import TARGET, matching, no_sparse, unfit
from quantnet_jax.trees import tree

PyTree = Any


class Context(NamedTuple):
    """What a term may look at, of one batch of one device.

    Attributes:
      outputs: of the model, see `quantnet_jax.tasks.base.Task`.
      examples: of the batch; 'mask' has the mean 1.
      loss: float32 scalar, the mean of the task's loss.
      params: latent weights.
      soft: the weights that the model was applied with.
      teacher_outputs: of the teacher for the same examples, None without a teacher.
      teacher_params: its weights, None without a teacher.
      step: int32 scalar, optimizer steps taken.
      quant: what the quantizers of weights learn, {path or shared key: qparams}.
      inputs: {path of a convolution: `LayerInput` or `SiteInput`} where a term needs
        them, else None.
    """

    outputs: PyTree
    examples: Mapping[str, jax.Array]
    loss: jax.Array
    params: PyTree
    soft: PyTree
    teacher_outputs: PyTree
    teacher_params: PyTree
    step: jax.Array
    quant: PyTree = None
    inputs: Mapping[str, Any] | None = None


Term = Callable[[Context], jax.Array]


def distillation(*, temperature: Annotated[float, Number(1e-3, 1e6)] = 4.0) -> Term:
    """Knowledge distillation from the teacher's logits.

    Forward: T^2 KL(softmax(teacher / T) || softmax(outputs / T)) - task loss
    so that with weight w the whole loss is (1 - w) task + w T^2 KL. T^2 keeps the size
    of the gradient at any temperature.

    Reference: Hinton et al., arXiv 1503.02531, section 2.

    Args:
      temperature: T, positive.
    """

    def term(context: Context) -> jax.Array:
        log_p = jax.nn.log_softmax(context.teacher_outputs / temperature)
        log_q = jax.nn.log_softmax(context.outputs / temperature)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
        return temperature**2 * _mean(kl, context) - context.loss

    return term


def output_mimicking() -> Term:
    """Mean squared difference of the outputs from the teacher's.

    Forward: mean((outputs - teacher)^2)
    """

    def term(context: Context) -> jax.Array:
        error = (context.outputs - context.teacher_outputs) ** 2
        return _mean(jnp.mean(error.reshape(error.shape[0], -1), -1), context)

    return term


@checked(together=unfit)
def kurtosis(
    *,
    target: Annotated[float, TARGET] = 1.8,
    targets: Annotated[Iterable[tuple[str, float]], Sequence()] = (),
    pattern: Annotated[str, Text()] = ".*kernel",
) -> Term:
    """Distance of the kurtosis of latent weights from a target, layer by layer.

    Forward: mean over layers of (kurt(w) - target)^2, kurt(w) = E[((w - m) / s)^4]
    A uniform distribution has 1.8, a bimodal one less, down to 1 for two spikes.

    Reference: KURE, arXiv 2002.07686; BD-BNN, arXiv 2204.02004 (target 1.8, weight 1).

    Args:
      target: of each layer that `targets` does not name, at least 1.
      targets: (pattern, target) rows; the first that matches a path counts.
      pattern: which parameters, matched against the whole '/'-joined path.
    """
    rows = [*targets, (".*", target)]

    def term(context: Context) -> jax.Array:
        leaves = matching(context.params, pattern)
        wanted = {p: next(t for r, t in rows if re.fullmatch(r, p)) for p in leaves}
        parts = [
            (regularizers.kurtosis(w) - wanted[path]) ** 2 for path, w in leaves.items()
        ]
        return jnp.mean(jnp.stack(parts))

    return term


@checked(together=unfit)
def weight_mimicking(
    *,
    temperature: Annotated[float, Number(1e-3, 1e6)] = 4.0,
    pattern: Annotated[str, Text()] = ".*kernel",
) -> Term:
    """Weight distribution mimicking: latent weights like those of a teacher.

    Forward: mean over layers of T^2 KL(softmax(v / T) || softmax(w / T))
    v are the teacher's weights of the same layer; the softmax is over the input
    channels (axis -2), the divergence is averaged over all other axes.

    Reference: BD-BNN, arXiv 2204.02004 (T = 4; without the classifier's distillation,
    which is the term `distillation`).

    Args:
      temperature: T, positive.
      pattern: which parameters, matched against the whole '/'-joined path; the teacher
        must have them in the same shapes.
    """

    def divergence(v: jax.Array, w: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(v / temperature, axis=-2)
        log_q = jax.nn.log_softmax(w / temperature, axis=-2)
        return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-2))

    def term(context: Context) -> jax.Array:
        teacher = tree.flatten(context.teacher_params)
        parts = []
        for path, w in matching(context.params, pattern).items():
            if path not in teacher or teacher[path].shape != w.shape:
                found = "nothing" if path not in teacher else teacher[path].shape
                raise ValueError(
                    f"{path!r} has the shape {w.shape}, the teacher has {found} there;"
                    " expected a teacher of the same architecture"
                )
            parts.append(divergence(teacher[path], w))
        return temperature**2 * jnp.mean(jnp.stack(parts))

    return term


def distance_calibration() -> Term:
    """Inter-class distances of embeddings like the teacher's (QGait's IDC).

    Forward: mean over pairs i, j of other classes of |d_ij / m(d) - t_ij / m(t)|
    d_ij is the distance of the normalized embeddings of examples i and j of a batch, t
    that of the teacher's, m the mean over the same pairs.

    Reference: QGait, arXiv 2405.13859. The formula is not public: a reconstruction.
    """

    def term(context: Context) -> jax.Array:
        label, mask = (context.examples[k] for k in ("label", "mask"))
        real = mask > 0
        pairs = (label[:, None] != label[None]) & real[:, None] & real[None]
        count = jnp.maximum(jnp.sum(pairs.astype(jnp.float32)), 1.0)
        mean = lambda x: jnp.sum(jnp.where(pairs, x, 0.0)) / count

        def relative(outputs):
            d = distances(normalized(outputs))
            return d / jnp.maximum(mean(d), 1e-6)

        student, teacher = map(relative, (context.outputs, context.teacher_outputs))
        return mean(jnp.abs(student - jax.lax.stop_gradient(teacher)))

    return term


def input_correlation() -> Term:
    """Moves the correlations that quantizers hold towards those of layer inputs.

    Forward: 0
    Backward: H - X^T X / m for each 'correlation' H of a quantizer (BiTAT), X the m
    inputs of the layer's outputs in the batch. Under plain SGD of rate r, H is a moving
    average: (1 - r) H + r X^T X / m.

    Reference: the refreshing of BiTAT, arXiv 2207.01394; a reconstruction.
    """

    def term(context: Context) -> jax.Array:
        assert context.inputs is not None
        total = jnp.zeros((), jnp.float32)
        for path, layer in context.inputs.items():
            own = getattr((context.quant or {}).get(f"{path}/kernel"), "value", None)
            if isinstance(own, dict) and "correlation" in own:
                if isinstance(layer, SiteInput):
                    raise ValueError(
                        f"{path!r} is a sparse convolution, expected dense ones"
                    )
                new = jax.lax.stop_gradient(correlation(layer))
                total += 0.5 * jnp.sum((own["correlation"] - new) ** 2)
        return total - jax.lax.stop_gradient(total)

    return term


@checked(together=unfit)
def quantization_error(*, pattern: Annotated[str, Text()] = "(?!stem/).*") -> Term:
    """Quantization error of the outputs of sparse convolutions (BSC-Net).

    Forward: mean over layers and channels of 1 - (y . z)^2 / (|y|^2 |z|^2)
    y are a layer's outputs with latent weights and real inputs, z those with what
    training computes with, see `quantnet_jax.tasks.layer_inputs.output_error`. Its
    gradient reaches latent weights, learned offsets and all layers before.

    Reference: BSC-Net, arXiv 2303.15493. The formula is not public: a reconstruction.

    Args:
      pattern: which kernels, matched against the whole '/'-joined path.
    """

    def term(context: Context) -> jax.Array:
        assert context.inputs is not None
        latent, soft = tree.flatten(context.params), tree.flatten(context.soft)
        parts = [
            output_error(layer, latent[name], soft[name])
            for path, layer in context.inputs.items()
            if isinstance(layer, SiteInput)
            and re.fullmatch(pattern, name := f"{path}/kernel")
        ]
        if not parts:
            raise no_sparse(pattern)
        return jnp.mean(jnp.stack(parts))

    return term


class Kind(NamedTuple):
    """A row of `TERMS`.

    Attributes:
      factory: of the term, whose arguments a configuration sets.
      teacher: whether it needs `config.teacher`.
      inputs: whether it needs the inputs of convolutions.
      sparse: whether it is of the kernels of sparse convolutions.
    """

    factory: Callable[..., Term]
    teacher: bool = False
    inputs: bool = False
    sparse: bool = False


TERMS = {
    "distance_calibration": Kind(distance_calibration, teacher=True),
    "distillation": Kind(distillation, teacher=True),
    "input_correlation": Kind(input_correlation, inputs=True),
    "kurtosis": Kind(kurtosis),
    "output_mimicking": Kind(output_mimicking, teacher=True),
    "quantization_error": Kind(quantization_error, inputs=True, sparse=True),
    "weight_mimicking": Kind(weight_mimicking, teacher=True),
}
"""Name in a configuration -> what makes the term, and what that needs."""


def weighted(terms: Iterable[tuple[float, Term]]) -> Term:
    """The sum of terms times their weights."""
    terms = tuple(terms)

    def total(context: Context) -> jax.Array:
        return sum((w * term(context) for w, term in terms), jnp.zeros((), jnp.float32))

    return total


def _mean(values: jax.Array, context: Context) -> jax.Array:
    return jnp.mean(values * context.examples["mask"])
