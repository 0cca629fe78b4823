"""Trains a small ViT whose layers are one `nn.scan`, with 1-bit kernels in them.

    python examples/vit.py
    python examples/vit.py --steps=2000 --depth=6

`nn.scan` keeps the kernels of all layers in one array, and attention has its output
units on two axes: `qn.axes` finds both, the rule says `out="auto"`.
"""

import argparse
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

# Your model begins here --------------------------------------------------------------


class Block(nn.Module):
    """A layer: attention and two Dense."""

    @nn.compact
    def __call__(self, x, _):
        size = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(4, name="attention")
        x = x + attention(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(2 * size, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(size, name="down")(h), None


class ViT(nn.Module):
    """Patches, layers, a head; the layers in a scan or in a loop."""

    depth: int = 3
    size: int = 32
    scan: bool = True

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.size, (7, 7), (7, 7), name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.size)
        start = nn.initializers.normal(0.02)
        x = x + self.param("positions", start, (1, *x.shape[1:]))
        if self.scan:
            each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=self.depth, **each)(name="blocks")(x, None)
        else:
            for i in range(self.depth):
                x, _ = Block(name=f"block{i}")(x, None)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


# Your model ends here ----------------------------------------------------------------

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # where the package is not installed

import quantnet_jax as qn  # noqa: E402
from quantnet_jax import data  # noqa: E402

QUANTIZED = "block.*/kernel"  # patches, head and all biases stay float


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints soft and hard accuracy, and returns them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--test-size", type=int, default=2_000, help="images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    dataset = data.subset(data.load("bundled"), None, args.test_size)
    normal = lambda x: np.asarray(data.normalize(x, *data.normalization(dataset)))
    images, test_images = normal(dataset.train_image), normal(dataset.test_image)
    model, key = ViT(args.depth), jax.random.key(args.seed)
    params = jax.jit(model.init)(key, images[:1])["params"]

    def apply(params, images) -> Any:
        return model.apply({"params": params}, images)

    sharpness = qn.schedules.exponential(1.0, 10.0, 0.9 * args.steps)
    quantnet = qn.quantnet(sharpness=sharpness)
    axes = qn.axes(apply, params, images[:1])
    q = qn.tree_quantizer([qn.Rule(QUANTIZED, quantnet, out="auto")], params, axes=axes)
    both = params, jax.jit(q.init)(key, params)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, args.steps))
    state = optimizer.init(both)

    @jax.jit
    def train_step(both, state, step, images, labels):
        def loss(both):
            logits = apply(q.soft(both[1], both[0], step=step), images)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return ce.mean()

        value, grads = jax.value_and_grad(loss)(both)
        updates, state = optimizer.update(grads, state, both)
        return optax.apply_updates(both, updates), state, value

    rng, losses = np.random.default_rng(args.seed), []
    for step in range(args.steps):
        rows = rng.integers(len(images), size=args.batch_size)
        labels = dataset.train_label[rows]
        both, state, value = train_step(
            both, state, jnp.asarray(step), images[rows], labels
        )
        losses.append(float(value))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.3f}", flush=True)

    params, qparams = both
    hard = q.hard(qparams, params)  # QTensor leaves: codes, levels, scale
    trees = {"soft": q.soft(qparams, params, step=args.steps), "hard": hard}
    result = {"first loss": losses[0], "last loss": float(np.mean(losses[-20:]))}
    for name, tree in trees.items():
        logits = jax.jit(apply)(qn.dequantize_tree(tree), test_images)
        result[name] = float(np.mean(logits.argmax(-1) == dataset.test_label))
        print(f"{name}  {100 * result[name]:6.2f}%")
    return result


if __name__ == "__main__":
    main()
