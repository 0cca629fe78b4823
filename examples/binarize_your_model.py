"""Trains a Flax model of your own, linen or nnx, with 1-bit weights and no edit to it.

    python examples/binarize_your_model.py
    python examples/binarize_your_model.py --framework=nnx --epochs=4

The model is ordinary Flax. QuantNet works on its parameters alone: training runs it on
soft weights, deployment on hard ones, through the same `apply`. Other state of a model
(such as BatchNorm's) goes in and out of `apply` as usual.

Bundled images, 5 epochs, a minute or two on two CPU cores: soft about 89.5 and 89.2
(linen and nnx), hard about 89.2 and 89.1; one seed each, results/examples.jsonl.
"""

import argparse
import json
import pathlib
import shlex
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

# Your model begins here --------------------------------------------------------------


class LinenModel(nn.Module):
    """Three convolutions with LayerNorm, two poolings, a dense head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Conv(16, (3, 3), name="first")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.LayerNorm()(nn.Conv(32, (3, 3), name="body_a")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.LayerNorm()(nn.Conv(32, (3, 3), name="body_b")(x)))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class NnxModel(nnx.Module):
    """The same network in nnx."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.body_a = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.body_b = nnx.Conv(32, 32, (3, 3), rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(n, rngs=rngs) for n in (16, 32, 32)])
        self.head = nnx.Linear(7 * 7 * 32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.first(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = nnx.relu(self.norms[1](self.body_a(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = nnx.relu(self.norms[2](self.body_b(x)))
        return self.head(x.reshape(len(x), -1))


# Your model ends here ----------------------------------------------------------------

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # where the package is not installed

import quantnet_jax as qn  # noqa: E402
from quantnet_jax import data  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.trees.tree import flatten  # noqa: E402

QUANTIZED = "body_.*/kernel"  # first and last layer and all biases stay float


def linen(key, images):
    """(parameters, `apply(parameters, images)`) of the linen model."""
    model = LinenModel()
    params = jax.jit(model.init)(key, images)["params"]
    return params, lambda params, x: model.apply({"params": params}, x)


def as_nnx(key, images):
    """The same of the nnx model: its parameters as a dict, put back inside `apply`."""
    model = nnx.jit(lambda key: NnxModel(nnx.Rngs(key)))(key)
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    apply = lambda params, x: nnx.merge(graphdef, params, rest)(x)
    return nnx.to_pure_dict(state), apply


FRAMEWORKS = {"linen": linen, "nnx": as_nnx}


def train(apply, params, images, labels, *, epochs, batch_size, learning_rate, seed):
    """Trains weights and sub-networks together.

    Returns:
      (quantizer of the tree, parameters, sub-networks, steps, mean loss of each epoch).
    """
    steps = epochs * (len(images) // batch_size)
    sharpness = qn.schedules.exponential(0.3, 10.0, 0.9 * steps)
    # No scale: a LayerNorm follows each of these layers.
    quantnet = qn.quantnet(sharpness=sharpness, scale="none")
    rules = [qn.Rule(QUANTIZED, quantnet)]
    q = qn.tree_quantizer(rules, params)
    both = (params, jax.jit(q.init)(jax.random.key(seed), params))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def train_step(both, opt_state, step, images, labels):
        def loss(both):
            params, qparams = both
            logits = apply(q.soft(qparams, params, step=step), images)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return ce.mean() + q.penalty(qparams, params, step=step)

        value, grads = jax.value_and_grad(loss)(both)
        updates, opt_state = optimizer.update(grads, opt_state, both)
        return optax.apply_updates(both, updates), opt_state, value

    opt_state, step, means = jax.jit(optimizer.init)(both), 0, []
    order = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        rows = order.permutation(len(images))[: steps // epochs * batch_size]
        losses = []
        for batch in rows.reshape(-1, batch_size):
            both, opt_state, value = train_step(
                both, opt_state, jnp.asarray(step), images[batch], labels[batch]
            )
            losses.append(value)
            step += 1
        means.append(float(np.mean(losses)))
        print(f"epoch {epoch}/{epochs}: loss {means[-1]:.3f}", flush=True)
    return q, *both, steps, means


def accuracy(apply, params, images, labels, size=500):
    """Fraction of correctly classified images; `apply` is jitted."""
    parts = np.split(images, range(size, len(images), size))
    logits = np.concatenate([apply(params, part) for part in parts])
    return float(np.mean(logits.argmax(-1) == labels))


def main(argv: list[str] | None = None) -> dict:
    """Trains, prints soft accuracy, hard accuracy and gap, and returns them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--framework", choices=FRAMEWORKS, default="linen")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=10_000, help="images")
    parser.add_argument("--test-size", type=int, default=2_000, help="images")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write the result to")
    args = parser.parse_args(argv)
    if args.epochs < 1 or not 1 <= args.batch_size <= args.train_size:
        parser.error("expected --epochs >= 1 and 1 <= --batch-size <= --train-size")

    try:
        dataset = data.subset(data.load("bundled"), args.train_size, args.test_size)
    except ValueError as e:
        parser.error(str(e))
    mean, std = data.normalization(dataset)
    as_input = lambda image: np.asarray(data.normalize(image, mean, std))
    images, test_images = as_input(dataset.train_image), as_input(dataset.test_image)

    params, apply = FRAMEWORKS[args.framework](jax.random.key(args.seed), images[:1])
    q, params, qparams, steps, losses = train(
        apply,
        params,
        images,
        dataset.train_label,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )

    hard = jax.jit(q.hard)(qparams, params)  # QTensor leaves: codes, levels, scale
    trees = {"soft": jax.jit(q.soft)(qparams, params, step=steps), "hard": hard}
    predict, scores = jax.jit(apply), {}
    for name, tree in trees.items():
        tree = qn.dequantize_tree(tree)
        scores[name] = accuracy(predict, tree, test_images, dataset.test_label)
    values = {
        path: np.unique(qn.dequantize(leaf)).tolist()
        for path, leaf in flatten(hard).items()
        if isinstance(leaf, qn.QTensor)
    }
    scores["gap"] = scores["soft"] - scores["hard"]
    for name, score in scores.items():
        print(f"{name}  {100 * score:6.2f}%")
    for path, found in values.items():
        print(f"{path}: {len(found)} values, {found}")
    result = {"framework": args.framework, **scores, "losses": losses, "values": values}
    if args.out:
        words = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", "examples/binarize_your_model.py", *words])
        text = json.dumps({"command": command, **result, **provenance()}, indent=2)
        pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(args.out).write_text(text + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
