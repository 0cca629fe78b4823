"""Small models of every kind that users bring, as `(params, state), apply, example`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import quantnet_jax as qn
from examples import gpt, vit


class Own(NamedTuple):
    """A model.

    Attributes:
      params: the tree that rules match.
      state: all else that ships, such as BatchNorm's statistics.
      apply: `((params, state), x) -> outputs`.
      example: x.
      pattern: of the tensors to quantize.
    """

    params: Any
    state: Any
    apply: Callable
    example: jax.Array
    pattern: str


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def of_linen(model, example, pattern=".*kernel"):
    variables = dict(jax.jit(model.init)(jax.random.key(0), example))
    params = variables.pop("params")
    apply = lambda tree, x: model.apply({"params": tree[0], **tree[1]}, x)
    return Own(params, variables, apply, example, pattern)


def of_nnx(model, example, pattern=".*kernel"):
    params, state, call = qn.nnx.split(model)
    return Own(params, state, lambda tree, x: call(*tree, x)[0], example, pattern)


class Linen(nn.Module):
    """A linen network of a function."""

    call: Callable

    @nn.compact
    def __call__(self, x):
        return self.call(x)


def linen_cnn(x):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)))


def depthwise(x):
    x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(x))
    return nn.Conv(3, (1, 1))(x).mean((1, 2))


class NnxCNN(nnx.Module):
    """Convolution, BatchNorm, Dropout, dense layer."""

    def __init__(self, rngs):
        self.conv, self.norm = (
            nnx.Conv(1, 4, (3, 3), rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
        )
        self.drop, self.head = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.drop(self.conv(x))))
        return self.head(x.mean((1, 2)))


class Twelve(nnx.Module):
    """Twelve layers of equal shape, whose order counts."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = x + jnp.tanh(layer(x))
        return x


def haiku(example):
    """The layout of haiku: modules are keys with slashes, w is (in, out)."""
    names = "mlp/~/linear_0", "mlp/~/linear_1"
    layer = lambda n, m: {"w": normal(n, m), "b": jnp.zeros(m)}
    params = dict(zip(names, (layer(4, 5), layer(5, 3)), strict=True))

    def apply(tree, x):
        for name in names:
            layer = tree[0][name]
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return x

    return Own(params, {}, apply, example, ".*w")


def equinox(example):
    """The layout of equinox: lists of layers, weight is (out, in)."""
    layer = lambda n, m: {"weight": normal(m, n), "bias": jnp.zeros(m)}
    params = {"layers": [layer(4, 5), layer(5, 3)]}

    def apply(tree, x):
        def one(x):
            for layer in tree[0]["layers"]:
                x = jnp.tanh(layer["weight"] @ x + layer["bias"])
            return x

        return jax.vmap(one)(x)

    return Own(params, {}, apply, example, ".*weight")


MODELS: dict[str, Callable[[], Own]] = {
    "linen CNN": lambda: of_linen(Linen(linen_cnn), normal(2, 4, 4, 1)),
    "nnx CNN": lambda: of_nnx(NnxCNN(nnx.Rngs(0)), normal(2, 4, 4, 1)),
    "nnx list of 12": lambda: of_nnx(Twelve(nnx.Rngs(0)), normal(2, 3)),
    "ViT, loop": lambda: of_linen(
        vit.ViT(2, 8, scan=False), normal(2, 14, 14, 1), "block.*kernel"
    ),
    "ViT, scan": lambda: of_linen(vit.ViT(2, 8), normal(2, 14, 14, 1), "block.*kernel"),
    "GPT": lambda: of_nnx(
        gpt.GPT(5, 6, 8, 1, nnx.Rngs(0)), jnp.ones((2, 6), jnp.int32), "blocks.*kernel"
    ),
    "depthwise": lambda: of_linen(Linen(depthwise), normal(2, 4, 4, 2)),
    "transposed": lambda: of_linen(
        Linen(lambda x: nn.ConvTranspose(3, (2, 2), (2, 2))(x)), normal(2, 3, 3, 2)
    ),
    "1-D": lambda: of_linen(Linen(lambda x: nn.Conv(3, (3,))(x)), normal(2, 5, 2)),
    "3-D": lambda: of_linen(
        Linen(lambda x: nn.Conv(3, (2, 2, 2))(x)), normal(2, 3, 3, 3, 2)
    ),
    "recurrent": lambda: of_linen(
        Linen(lambda x: nn.RNN(nn.GRUCell(3))(x)), normal(2, 4, 2)
    ),
    "haiku": lambda: haiku(normal(2, 4)),
    "equinox": lambda: equinox(normal(2, 4)),
}
