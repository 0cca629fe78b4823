"""The places of a network where activations are quantized.

A site is a linen module. It finds out by itself, from the collection 'training' of the
variables, whether a training step is computed, so no layer passes anything on:

    model.apply({"params": ..., "batch_stats": ..., "training": {"step": step}}, x,
                train=True, mutable=["batch_stats", "penalty"])

computes `soft` at this step, updates running state and returns the penalties of all
sites in the collection 'penalty'; {"training": {"step": ..., "key": ...}} gives random
numbers, too. Without 'training' a site computes what ships: discrete values, with the
running state as it is, however soft training was.

Running state is in the collection 'batch_stats', so whatever becomes of the statistics
of BatchNorm (checkpoints, averages, deployment) becomes of it.
"""

import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantnet_jax.activations.quantizer import ActivationQuantizer, as_activation
from quantnet_jax.common.names import show
from quantnet_jax.core.quantizer import Quantizer

PyTree = Any
INPUT, RECTIFIED, RESIDUAL, OUTPUT = SITES = (
    *("input", "rectified", "residual", "output"),
)
"""Inputs of inner convolutions (in some networks apart: those behind a ReLU), terms of
residual sums, output of a network."""
DEFAULT = (INPUT,)


class QuantizeActivation(nn.Module):
    """One site. What the quantizer learns is its parameter 'qparams'.

    Parameters start from the activations that initialize the network, which should be
    real ones for a quantizer that looks at them (LSQ).

    Attributes:
      quantizer: any; with `observe` it has running state of the name 'qparams', too.
      axis_name: mapped axis of the devices, or None: running state is averaged over
        it, and random numbers differ along it.
      folded: there is no running state; 'qparams' hold it (`fold_running`).
    """

    quantizer: Quantizer | ActivationQuantizer
    axis_name: str | None = None
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype as `x`; the arithmetic is float32."""
        q, values = as_activation(self.quantizer), x.astype(jnp.float32)
        qparams = jax.eval_shape(q.init, jax.random.key(0), values)
        if jax.tree.leaves(qparams):
            qparams = self.param("qparams", q.init, values)
        training = self._training()
        if q.observe is not None and not self.folded:
            zeros = lambda: jax.tree.map(jnp.zeros_like, qparams)
            running = self.variable("batch_stats", "qparams", zeros)
            if "step" in training:
                now = fold_running(qparams, running.value)
                change = q.observe(now, values, step=training["step"])
                if self.axis_name is not None:
                    change = jax.lax.pmean(change, self.axis_name)
                change = jax.lax.stop_gradient(change)
                running.value = jax.tree.map(jnp.add, running.value, change)
            qparams = fold_running(qparams, running.value)
        if "step" not in training:
            return q.value(qparams, values).astype(x.dtype)
        penalty = q.penalty(qparams, values, step=training["step"])
        zero = lambda: jnp.zeros((), jnp.float32)
        self.sow("penalty", "sum", penalty, reduce_fn=jnp.add, init_fn=zero)
        return q.soft(qparams, values, **training).astype(x.dtype)

    def _training(self) -> dict[str, jax.Array]:
        """'step' and perhaps 'key', of this site and device; {} outside of training."""
        # The collection belongs to the network: it has no entries for its modules.
        root = self.scope.root  # pyright: ignore[reportOptionalMemberAccess]
        given = {name: root.get_variable("training", name) for name in ("step", "key")}
        if given["key"] is not None:
            number = zlib.crc32("/".join(self.path).encode())
            given["key"] = jax.random.fold_in(given["key"], number)
            if self.axis_name is not None:
                index = jax.lax.axis_index(self.axis_name)
                given["key"] = jax.random.fold_in(given["key"], index)
        return {name: value for name, value in given.items() if value is not None}


SiteQuantizer = Quantizer | ActivationQuantizer
SiteQuantizers = SiteQuantizer | Mapping[str, SiteQuantizer] | None
"""Of a network: that of all its sites, or of each by name."""


def quantizer_at(quantizers: SiteQuantizers, site: str) -> SiteQuantizer | None:
    """The one of a site; None without quantizers."""
    if isinstance(quantizers, Mapping):
        return quantizers[site]
    return quantizers


def fold_running(qparams: PyTree, running: PyTree) -> PyTree:
    """What the functions of a quantizer get: what is learned plus what is observed."""
    return jax.tree.map(jnp.add, qparams, running)


def check_sites(
    sites: Any, known: tuple[str, ...] = SITES, key: str = "sites"
) -> tuple[str, ...]:
    """The sites of a network as a tuple.

    Args:
      sites: names; a list will do.
      known: those that the network has.
      key: its name in errors.

    Raises:
      ValueError: one line that begins with the key.
    """
    wrong = not isinstance(sites, tuple | list) or any(s not in known for s in sites)
    if wrong or len(set(sites)) != len(sites) or not sites:
        raise ValueError(
            f"{key}={show(sites)}, expected some of {', '.join(map(repr, known))}"
        )
    return tuple(sites)


def replace_quantizers(
    instead: Callable[..., jax.Array],
) -> AbstractContextManager:
    """Within it, another function decides what the sites of a network return.

    Args:
      instead: `(path, input, quantize) -> output` of a site: its '/'-joined path, and
        itself as a function, which may be called once.
    """

    def intercept(call, args, kwargs, context):
        site = context.module
        if not isinstance(site, QuantizeActivation) or (
            context.method_name != "__call__"
        ):
            return call(*args, **kwargs)
        return instead("/".join(site.path), args[0], call)

    return nn.intercept_methods(intercept)
