"""An equinox network with ternary inner weights, from rules to the packed file."""

import equinox as eqx
import jax
import numpy as np
from optax import adam
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

import quantnet_jax as qn


def main(steps=500, size=64, out="mlp.safetensors"):
    data, rng = qn.data.load("bundled"), np.random.default_rng(0)
    images, tests = (
        x.reshape(len(x), -1).astype("f4") / 255
        for x in (data.train_image, data.test_image)
    )
    model = eqx.nn.MLP(images.shape[1], 10, 128, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(tree, x):
        return jax.vmap(eqx.combine(tree, static))(x)

    # Equinox keeps weights as (out, in): the products tell.
    axes = qn.axes(apply, params, tests[:2])
    inner = qn.Rule("layers/[12]/weight", qn.bitnet(), out="auto")
    q = qn.tree_quantizer([inner], params, axes=axes)

    def loss(weights, x, y):
        return cross_entropy(apply(weights, x), y).mean()

    update, qparams = qn.make_update(q, adam(1e-3)), q.init(jax.random.key(1), params)
    state, train = update.init(params, qparams), jax.jit(update.step, static_argnums=0)
    for _ in range(steps):
        n = rng.integers(len(images), size=size)
        args = images[n], data.train_label[n]
        params, qparams, state, _ = train(loss, params, qparams, state, *args)
    score = lambda w: np.mean(apply(w, tests).argmax(-1) == data.test_label)
    gap, hard = qn.gap(score, q, qparams, params, steps), q.hard(qparams, params)
    qn.save(out, hard, apply=apply, example=tests[:2])
    return gap, qn.load(out, apply=apply, like=hard)


if __name__ == "__main__":
    print(main()[0])
