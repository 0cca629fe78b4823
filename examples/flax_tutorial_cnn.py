"""The CNN of the Flax tutorial (nnx, BatchNorm, Dropout) with 1-bit inner layers."""

import jax
import numpy as np
import optax
from flax import nnx

import quantnet_jax as qn


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.norm1, self.norm2 = (nnx.BatchNorm(n, rngs=rngs) for n in (32, 64))
        self.dense1 = nnx.Linear(7 * 7 * 64, 256, rngs=rngs)
        self.dense2 = nnx.Linear(256, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.025, rngs=rngs)

    def __call__(self, x):
        pool = lambda x: nnx.avg_pool(nnx.relu(x), (2, 2), (2, 2))
        x = pool(self.norm1(self.dropout(self.conv1(x))))
        x = pool(self.norm2(self.conv2(x))).reshape(len(x), -1)
        return self.dense2(self.dropout(nnx.relu(self.dense1(x))))


def main(steps=1000, size=32, out="cnn.safetensors"):
    data, rng = qn.data.load("bundled"), np.random.default_rng(0)
    images, tests = (x.astype("f4") / 255 for x in (data.train_image, data.test_image))
    params, state, call = qn.nnx.split(CNN(nnx.Rngs(0)))
    quantnet = qn.quantnet(sharpness=qn.schedules.exponential(0.3, 20.0, steps))
    q = qn.tree_quantizer([qn.Rule("(conv2|dense1)/kernel", quantnet)], params)

    def loss(weights, state, x, y, key):
        logits, state = call(weights, state, x, train=True, rngs=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    update = qn.make_update(q, optax.adam(2e-3), has_aux=True)
    qparams = jax.jit(q.init)(jax.random.key(0), params)
    opt, train = update.init(params, qparams), jax.jit(update.step, static_argnums=0)
    for key in jax.random.split(jax.random.key(1), steps):
        n = rng.integers(len(images), size=size)
        args = state, images[n], data.train_label[n], key
        params, qparams, opt, (_, state) = train(loss, params, qparams, opt, *args)
    apply = jax.jit(lambda tree, x: call(*tree, x)[0])
    score = lambda w: np.mean(apply((w, state), tests).argmax(-1) == data.test_label)
    qn.save(out, (q.hard(qparams, params), state), apply=apply, example=tests[:2])
    return qn.gap(score, q, qparams, params, steps), qn.load(out, apply=apply)


if __name__ == "__main__":
    print(main()[0])
