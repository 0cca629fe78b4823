"""Tests of the training step against losses and loops written independently of it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config
from util import make_step, noisy, ready_task

from quantnet_jax import models, quantizers
from quantnet_jax.core.quantizer import identity
from quantnet_jax.distributed import runners
from quantnet_jax.evaluation.forward import make_tally
from quantnet_jax.training import experiment, optim
from quantnet_jax.training.estimators import gradients
from quantnet_jax.training.state import create_state
from quantnet_jax.trees import tree

PATTERN = models.KERNELS["inner"]
MODEL = models.create("small", outputs=4)


def apply(variables, image, train):
    return MODEL.apply(
        variables, image, train, mutable=["batch_stats"] if train else []
    )


def ready_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 8, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, size), jnp.int32),
        "mask": jnp.ones(size),
    }


def sgd(rate):
    return optim.optimizer("sgd", lambda step: rate, momentum=0.0)


@functools.cache  # of compiled functions: three tests take the same ones
def make(quantizer, estimator=gradients.joint, smoothing=0.0, tx=None):
    """(state, train_step(state, batch)) of a small network, plain SGD by default.

    With rate 1 and no momentum, the old parameters less the new ones are the gradient.
    """
    variables = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rules = [tree.Rule(PATTERN, quantizer, "kernel")]
    quantizer = tree.tree_quantizer(rules, variables["params"])
    tx = tx or optim.partition(sgd(1.0), sgd(1.0))
    state = create_state(variables, quantizer, tx, jax.random.key(1))
    # A sub-network starts as the identity; away from it all gradients are at work.
    quant = noisy(state.params["quant"])
    state = state._replace(params={"model": state.params["model"], "quant": quant})
    step = make_step(apply, quantizer, tx, ready_task(4, smoothing), estimator)
    return state, jax.jit(lambda state, batch: step(state, None, batch, None))


QUANTNET = quantizers.create("quantnet", width=4, sharpness=2.0, penalty=0.3)


def network(weights, batch_stats, x):
    """The small network in training, written out; (logits, new running statistics)."""
    stats = {}
    for layer, norm, stride in (
        ("stem", "stem_bn", 2),
        ("conv1", "bn1", 1),
        ("conv2", "bn2", 1),
    ):
        x = jax.lax.conv_general_dilated(
            x,
            weights[layer]["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        mean = jnp.mean(x, (0, 1, 2), keepdims=True)
        var = jnp.mean((x - mean) ** 2, (0, 1, 2), keepdims=True)
        stats[norm] = {
            name: 0.9 * batch_stats[norm][name] + 0.1 * jnp.ravel(value)
            for name, value in (("mean", mean), ("var", var))
        }
        scale, bias = (weights[norm][k].reshape(1, 1, 1, -1) for k in ("scale", "bias"))
        x = jnp.maximum((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, 0.0)
    features = jnp.mean(x, (1, 2))
    head = weights["head"]
    return features @ head["kernel"] + head["bias"][None], stats


def own_loss(quantizer, params, batch_stats, batch, smoothing=0.0):
    """The loss of a batch: no tree, no model, no masks, no axis.

    Returns:
      (loss, (batch statistics, penalty)).
    """
    weights, penalty = params["model"], 0.0
    for layer in ("conv1", "conv2"):
        kernel = params["model"][layer]["kernel"]
        qparams = params["quant"]["shared0:3x3"]
        soft = quantizer.soft(qparams, kernel, step=0)
        weights = weights | {layer: {"kernel": soft}}
        penalty = penalty + quantizer.penalty(qparams, kernel, step=0)
    logits, new_stats = network(weights, batch_stats, batch["image"])
    log_p = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    target = jnp.eye(4)[batch["label"]] * (1 - smoothing) + smoothing / 4
    loss = -jnp.mean(jnp.sum(target * log_p, -1)) + penalty
    return loss, (new_stats, penalty)


def rows(batch, wanted):
    return jax.tree.map(lambda x: x[jnp.asarray(wanted)], batch)


def difference(old, new):
    return jax.tree.map(lambda a, b: a - b, old, new)


# One step, in numbers ----------------------------------------------------------------
GOLDEN = {
    "loss": 1.349445,
    "accuracy": 0.375,
    "penalty": 0.066357,
    "grad_norm": 0.436873,
    "meta_grad_norm": 0.103049,
}


def test_golden_numbers_of_one_step():
    """The whole path: synthetic images, order, augmentation, model, quantizer, loss."""
    exp = experiment.build(tiny_config(runner="jit", seed=2), jax.devices()[:1])
    batch = next(exp.train_batches(0))
    _, metrics = exp.train_step(exp.state, exp.train_data, batch)
    got = {name: float(value) for name, value in metrics.items()}
    assert got == pytest.approx(GOLDEN, rel=1e-3), (
        f"one step now gives {got}. If seeds, data order, augmentation, the network's "
        "initialization or the quantizer were changed on purpose, put these numbers "
        "into GOLDEN of test_steps.py and say so in CHANGELOG.md: old runs are then no "
        "longer reproduced"
    )


def test_metrics_are_finite_float32_scalars():
    for quantizer in (QUANTNET, identity(), quantizers.create("binary_ste")):
        state, step = make(quantizer)
        _, metrics = step(state, ready_batch())
        assert set(metrics) == set(GOLDEN)
        for name, value in metrics.items():
            assert (value.shape, value.dtype) == ((), jnp.float32), name
            assert np.isfinite(value), name


# Joint -------------------------------------------------------------------------------
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_joint_step_is_the_gradient_of_the_loss(smoothing):
    quantizer = QUANTNET
    state, step = make(quantizer, smoothing=smoothing)
    batch = ready_batch()
    loss = lambda p: own_loss(quantizer, p, state.batch_stats, batch, smoothing)
    (value, (stats, penalty)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.params
    )
    new, metrics = step(state, batch)
    chex.assert_trees_all_close(
        difference(state.params, new.params), grads, rtol=1e-4, atol=1e-6
    )
    chex.assert_trees_all_close(new.batch_stats, stats, rtol=1e-5, atol=1e-6)
    assert int(new.step) == 1
    assert float(metrics["penalty"]) == pytest.approx(float(penalty), rel=1e-5)
    assert float(metrics["loss"] + metrics["penalty"]) == pytest.approx(
        float(value), rel=1e-5
    )
    for name, part in (("grad_norm", "model"), ("meta_grad_norm", "quant")):
        wanted = np.sqrt(
            sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads[part]))
        )
        assert float(metrics[name]) == pytest.approx(float(wanted), rel=1e-4)
        assert wanted > 1e-3


def test_identity_equals_a_plain_training_loop():
    """Without a quantizer this is any JAX training loop, optimizer and all."""
    rate = optax.cosine_decay_schedule(0.1, 10.0)
    weights = optax.chain(
        optax.add_decayed_weights(
            1e-2, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
        optax.sgd(lambda step: rate(jnp.float32(step)), momentum=0.9, nesterov=True),
    )
    ours = optim.partition(
        optim.optimizer("sgd", optim.learning_rate(0.1, 10), weight_decay=1e-2),
        sgd(0.1),
    )
    state, step = make(identity(), tx=ours)
    params, stats = state.params["model"], state.batch_stats
    opt_state = weights.init(params)

    @jax.jit
    def plain(params, stats, opt_state, batch):
        def loss(params):
            logits, new = MODEL.apply(
                {"params": params, "batch_stats": stats},
                batch["image"],
                True,
                mutable=["batch_stats"],
            )
            all_ = optax.softmax_cross_entropy_with_integer_labels
            return all_(logits, batch["label"]).mean(), new["batch_stats"]

        (value, stats_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state_ = weights.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats_, opt_state_, value

    for i in range(4):
        batch = ready_batch(seed=i)
        state, metrics = step(state, batch)
        params, stats, opt_state, value = plain(params, stats, opt_state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    chex.assert_trees_all_close(state.params["model"], params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5, atol=1e-6)
    assert float(metrics["penalty"]) == 0.0


# Bilevel -----------------------------------------------------------------------------
EVERY, RATE = 4, 0.2
BILEVEL = {
    exact: functools.partial(
        gradients.bilevel, rate=lambda step: RATE, every=EVERY, exact=exact
    )
    for exact in (False, True)
}
HELD, KEPT = [3, 7], [0, 1, 2, 4, 5, 6]


def look_ahead(quantizer, state, batch, exact):
    """quant -> loss of the held-out rows after a step of the weights on the others."""

    def loss(model, quant, wanted):
        params = {"model": model, "quant": quant}
        part = rows(batch, wanted)
        return own_loss(quantizer, params, state.batch_stats, part)[0]

    def held_out(quant):
        model = state.params["model"]
        at = quant if exact else state.params["quant"]
        grads = jax.grad(loss)(model, at, KEPT)
        ahead = jax.tree.map(lambda w, g: w - RATE * g, model, grads)
        return loss(ahead, quant, HELD)

    return held_out


@pytest.mark.parametrize("exact", [False, True])
def test_bilevel_gradients(exact):
    """Against the definition; the weights see only the rows that are not held out."""
    quantizer = QUANTNET
    state, step = make(quantizer, BILEVEL[exact])
    batch = ready_batch()
    new, metrics = step(state, batch)
    got = difference(state.params, new.params)

    kept = lambda p: own_loss(quantizer, p, state.batch_stats, rows(batch, KEPT))
    (value, (stats, penalty)), grads = jax.jit(jax.value_and_grad(kept, has_aux=True))(
        state.params
    )
    chex.assert_trees_all_close(got["model"], grads["model"], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(new.batch_stats, stats, rtol=1e-5, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value - penalty), rel=1e-5)

    held_out = jax.jit(jax.grad(look_ahead(quantizer, state, batch, exact)))
    chex.assert_trees_all_close(
        got["quant"], held_out(state.params["quant"]), rtol=1e-4, atol=1e-6
    )


def test_exact_meta_gradient_against_finite_differences():
    """Of the held-out loss after the look-ahead step, for each sub-network leaf."""
    quantizer = QUANTNET
    state, step = make(quantizer, BILEVEL[True])
    batch = ready_batch()
    got = difference(state.params, step(state, batch)[0].params)["quant"]
    _, other_step = make(quantizer, BILEVEL[False])
    other = difference(state.params, other_step(state, batch)[0].params)["quant"]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = lambda t: jax.tree.map(
            lambda x: (
                jnp.asarray(np.asarray(x), jnp.float64)
                if x.dtype == jnp.float32
                else jnp.asarray(np.asarray(x))
            ),
            t,
        )
        state64, batch64 = wide(state), wide(batch)
        loss = jax.jit(look_ahead(quantizer, state64, batch64, exact=True))
        quant = state64.params["quant"]
        rng = np.random.default_rng(0)
        leaves, structure = jax.tree.flatten(quant)
        for number, leaf in enumerate(leaves):
            direction = jnp.asarray(rng.normal(size=leaf.shape))
            h = 1e-5
            ends = [
                loss(
                    jax.tree.unflatten(
                        structure,
                        [
                            x + (s * direction if i == number else 0.0)
                            for i, x in enumerate(leaves)
                        ],
                    )
                )
                for s in (h, -h)
            ]
            slope = float(ends[0] - ends[1]) / (2 * h)
            along = lambda t, n=number, d=direction: float(
                np.sum(np.asarray(jax.tree.leaves(t)[n], np.float64) * np.asarray(d))
            )
            assert along(got) == pytest.approx(slope, rel=2e-3, abs=1e-5), number
            assert abs(along(other) - slope) > 10 * abs(along(got) - slope), number


def test_held_out_rows_do_not_depend_on_the_sharding():
    """Each process and device of any count holds out the same rows of the batch."""
    x = np.arange(48)
    whole = gradients.every_nth(jnp.asarray(x), EVERY, True).tolist()
    assert whole == list(range(3, 48, 4))
    rest = gradients.every_nth(jnp.asarray(x), EVERY, False).tolist()
    assert sorted(whole + rest) == x.tolist()
    for devices in (1, 2, 3, 4, 6, 12):
        for kept, wanted in ((True, whole), (False, rest)):
            parts = [
                gradients.every_nth(jnp.asarray(part), EVERY, kept)
                for part in np.split(x, devices)
            ]
            assert np.concatenate(parts).tolist() == wanted, devices


def test_experiment_refuses_a_hold_out_that_a_device_cannot_split():
    config = tiny_config(meta__mode="bilevel", meta__holdout=0.125, batch_size=16)
    with pytest.raises(ValueError, match="meta.holdout=0.125 does not divide the 4 "):
        experiment.build(config)


# Counts ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", runners.RUNNERS)
def test_padding_has_no_influence_on_the_tally(kind):
    """Whatever the logits of padded rows are, the sums are those of the real rows."""
    rng = np.random.default_rng(0)
    runner = runners.make_runner(kind)
    task = ready_task()
    prepare = lambda data, batch: batch | {"label": data["label"][batch["index"]]}
    tally = runner.compile(make_tally(task, prepare), replicated=1)
    data = {"label": rng.integers(0, 4, 20).astype(np.int32)}
    on_devices = runner.replicate(data)
    index = np.arange(8, dtype=np.int32)
    mask = np.asarray([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    soft, hard = rng.normal(size=(2, 8, 4)).astype(np.float32)
    results = []
    for padding in (0.0, 7.0, -1e4):
        a, b = np.copy(soft), np.copy(hard)
        a[5:], b[5:, 0] = padding, padding
        batch = {"index": index, "mask": mask}
        shards = map(runner.shard, (batch, {"soft": a, "hard": b}))
        sums = tally(on_devices, *shards)
        results.append(jax.tree.map(float, sums))
    assert results[0] == results[1] == results[2]
    label = data["label"][:5]
    log_p = soft - np.log(np.exp(soft).sum(-1, keepdims=True))
    log_q = hard - np.log(np.exp(hard).sum(-1, keepdims=True))
    chex.assert_trees_all_close(
        results[0],
        {
            "examples": 5.0,
            "trees": {
                "soft": {
                    "accuracy": float((soft[:5].argmax(-1) == label).sum()),
                    "loss": float(-log_p[np.arange(5), label].sum()),
                },
                "hard": {
                    "accuracy": float((hard[:5].argmax(-1) == label).sum()),
                    "loss": float(-log_q[np.arange(5), label].sum()),
                },
            },
            "compare": {"kl": float((np.exp(log_p) * (log_p - log_q))[:5].sum())},
            "squares": float((hard[:5].argmax(-1) == label).sum()),  # of 0 and 1
        },
        rtol=1e-5,
        atol=1e-6,
    )
