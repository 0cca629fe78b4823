"""Tests of gradient accumulation: parts make up the batch, on any runner, in order."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config
from util import learned_tanh, make_step, normal, ready_task

from quantnet_jax.distributed import runners
from quantnet_jax.training import experiment, optim
from quantnet_jax.training.estimators import gradients
from quantnet_jax.training.estimators.gradients import accumulate, check_accumulation
from quantnet_jax.training.state import create_state
from quantnet_jax.trees import tree

LOOPS = pytest.mark.parametrize("loop", [False, True], ids=["written", "loop"])


# The parts ---------------------------------------------------------------------------
@LOOPS
def test_parts_are_strided_rows_in_order(loop):
    """The carry goes through the parts in order; the outputs are averaged."""

    def fn(carry, rows):
        return 10 * carry + rows["x"][0], {"sum": rows["x"].sum(), "y": rows["y"][1]}

    batch = {"x": jnp.arange(6), "y": jnp.arange(12.0).reshape(6, 2)}
    run = jax.jit(functools.partial(accumulate, fn, parts=3, loop=loop))
    with jax.numpy_dtype_promotion("standard"):
        carry, out = run(jnp.asarray(7), batch)
    assert int(carry) == 7012  # rows 0, 1, 2 lead the parts {0, 3}, {1, 4}, {2, 5}
    assert float(out["sum"]) == pytest.approx((3 + 5 + 7) / 3)
    np.testing.assert_allclose(out["y"], batch["y"][3:].mean(0))


def test_one_part_is_a_plain_call():
    batch, carry = {"x": jnp.arange(4)}, object()
    got = accumulate(lambda *args: args, carry, batch)
    assert got[0] is carry and got[1] is batch


# The training step -------------------------------------------------------------------
def apply(variables, image, train):
    """Two dense layers and running statistics that add up: no BatchNorm."""
    w = variables["params"]
    hidden = jnp.tanh(image @ w["one"])
    seen = variables["batch_stats"]
    new = {"last": 0.5 * seen["last"] + 0.5 * jnp.mean(image, 0)} if seen else {}
    return hidden @ w["two"], {"batch_stats": new}


def make(parts, loop=False, stats=False, width=8):
    """(state, train_step) of SGD with rate 1: new less old is the gradient."""
    params = {"one": jnp.asarray(normal(0, (5, width)))}
    params["two"] = jnp.asarray(normal(1, (width, 4)))
    quantizer = tree.tree_quantizer([tree.Rule("one", learned_tanh(), "model")], params)
    sgd = optim.optimizer("sgd", lambda step: 1.0, momentum=0.0)
    tx = optim.partition(sgd, sgd)
    variables = {"params": params}
    if stats:
        variables["batch_stats"] = {"last": jnp.zeros(5)}
    state = create_state(variables, quantizer, tx, jax.random.key(1))
    in_parts = functools.partial(accumulate, parts=parts, loop=loop)
    estimator = functools.partial(gradients.joint, in_parts=in_parts)
    step = make_step(apply, quantizer, tx, ready_task(4, 0.1), estimator)
    return state, step


def ready(size, masked=()):
    mask = np.ones(size, np.float32)
    mask[list(masked)] = 0.0
    label = np.random.default_rng(3).integers(0, 4, size).astype(np.int32)
    return {"image": normal(2, (size, 5)), "label": label, "mask": mask}


@functools.cache
def plain():
    """The state, and the compiled step on one device with the batch as a whole."""
    state, step = make(1)
    return state, jax.jit(step, static_argnums=3)


@functools.cache
def parted(kind, loop):
    """(runner, state and data on four devices, compiled step of four parts)."""
    runner = runners.make_runner(kind)
    state, step = make(4, loop)
    step = runner.compile(step, replicated=2)
    return runner, runner.replicate(state), runner.replicate({}), step


@pytest.mark.parametrize("kind", runners.RUNNERS)
@LOOPS
# Of four parts on four devices, the rows 1, 5, 9, 13 are all of part 1.
@pytest.mark.parametrize("masked", [(), (2, 3, 11), (1, 5, 9, 13)], ids=str)
def test_parts_equal_the_whole_batch(kind, loop, masked):
    """Weights, sub-network and metrics, on four devices, padding or none."""
    first, whole = plain()
    wanted, wanted_metrics = whole(first, None, ready(16, masked), None)
    runner, state, data, step = parted(kind, loop)
    got, metrics = step(state, data, runner.shard(ready(16, masked)))
    chex.assert_trees_all_close(got.params, wanted.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, wanted_metrics, rtol=1e-5, atol=1e-6)
    assert float(metrics["meta_grad_norm"]) > 1e-3 and float(metrics["penalty"]) > 1e-3


@LOOPS
def test_running_statistics_are_updated_part_after_part(loop):
    state, step = make(4, loop, stats=True)
    batch = ready(16)
    new, _ = jax.jit(step, static_argnums=3)(state, None, batch, None)
    wanted = np.zeros(5)
    for part in range(4):
        wanted = 0.5 * wanted + 0.5 * batch["image"][part::4].mean(0)
    np.testing.assert_allclose(new.batch_stats["last"], wanted, rtol=1e-5, atol=1e-6)


@functools.cache
def compiled(parts):
    """The program of four devices under 'jit', of a wide layer and many rows."""
    runner = runners.make_runner("jit")
    state, step = make(parts, loop=True, width=512)
    args = runner.replicate(state), None, runner.shard(ready(4096))
    return runner.compile(step, replicated=2).lower(*args).compile()


def test_parts_in_a_loop_take_less_memory():
    held = compiled(8).memory_analysis().temp_size_in_bytes
    assert held < compiled(1).memory_analysis().temp_size_in_bytes / 3


def test_splitting_moves_no_rows_between_devices():
    text = compiled(8).as_text()
    collectives = set(re.findall(r"all-\w+|collective-\w+|reduce-scatter", text))
    assert collectives == {"all-reduce"}
    assert " while(" in text


# What is refused ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (2, "bilevel", False),
            "accumulation_steps=2 cannot .* with meta.mode='bilevel'",
        ),
        ((2, "joint", True), "accumulation_steps=2 .* a gradient network"),
    ],
)
def test_check_refuses(args, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        check_accumulation(*args)
    assert "\n" not in str(error.value)
    check_accumulation(1, *args[1:])


def test_experiment_refuses():
    with pytest.raises(
        ValueError, match="accumulation_steps=3 does not divide batch_size=16"
    ):
        experiment.build(tiny_config(accumulation_steps=3))
    with pytest.raises(
        ValueError, match="accumulation_steps=8 does not divide the 4 examples"
    ):
        experiment.build(tiny_config(accumulation_steps=8))
    config = tiny_config(accumulation_steps=2, quantizer__name="metaquant")
    with pytest.raises(ValueError, match="accumulation_steps=2 .* a gradient network"):
        experiment.build(config)
