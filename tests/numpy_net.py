"""Residual networks in NumPy, and variables with no trivial value in them."""

import jax
import jax.numpy as jnp
import numpy as np


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def randomized(model, x, seed=0):
    """Variables with no trivial value in them: BatchNorm has random scale, mean, ..."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(size=leaf.shape) / fan**0.5, jnp.float32)

    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(fill, variables)


def images(seed=0, shape=(2, 8, 8, 3)):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x, jnp.float32)


def np_conv(x, kernel, stride):
    """Zero-padded by half the kernel on each side; sums over shifted images."""
    k = kernel.shape[0]
    pad = (k - 1) // 2
    rows, cols = (-(-s // stride) for s in x.shape[1:3])
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = 0.0
    for i in range(k):
        for j in range(k):
            shifted = x[:, i::stride, j::stride][:, :rows, :cols]
            y = y + np.einsum("nhwc,co->nhwo", shifted, kernel[i, j])
    return y


class NumpyNet:
    """A residual network in inference mode, in float64, straight from the paper."""

    def __init__(self, variables):
        self.v = {
            path.split("/", 1)[1]: np.asarray(x, np.float64)
            for path, x in paths(variables).items()
        }

    def conv_bn(self, x, conv, bn, stride=1):
        x = np_conv(x, self.v[f"{conv}/kernel"], stride)
        x = (x - self.v[f"{bn}/mean"]) / np.sqrt(self.v[f"{bn}/var"] + 1e-5)
        return x * self.v[f"{bn}/scale"] + self.v[f"{bn}/bias"]

    def block(self, x, at, stride, bottleneck):
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        y = x
        for i, s in enumerate(strides, 1):
            y = self.conv_bn(y, f"{at}/conv{i}", f"{at}/bn{i}", s)
            y = np.maximum(y, 0) if i < len(strides) else y
        if f"{at}/shortcut/kernel" in self.v:
            x = self.conv_bn(x, f"{at}/shortcut", f"{at}/shortcut_bn", stride)
        else:
            x = x[:, ::stride, ::stride]
            new = np.zeros((*x.shape[:3], y.shape[3] - x.shape[3]))
            x = np.concatenate([x, new], axis=3)
        return np.maximum(x + y, 0)

    def __call__(self, x, stem_stride=1, pool=False, bottleneck=False):
        x = np.maximum(self.conv_bn(x, "stem", "stem_bn", stem_stride), 0)
        if pool:
            rows, cols = (-(-s // 2) for s in x.shape[1:3])
            x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
            shifted = [x[:, i::2, j::2] for i in range(3) for j in range(3)]
            x = np.max([s[:, :rows, :cols] for s in shifted], axis=0)
        blocks = sorted({p.split("/")[0] for p in self.v if p.startswith("stage")})
        for at in blocks:
            stride = 2 if at.endswith("block0") and at[5] != "1" else 1
            x = self.block(x, at, stride, bottleneck)
        return x.mean((1, 2)) @ self.v["head/kernel"] + self.v["head/bias"]
