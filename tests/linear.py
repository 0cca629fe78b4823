"""A linear model, its optimizer and batches, for losses that can be written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from util import make_step, normal, ready_task

from quantnet_jax.training import optim
from quantnet_jax.training.estimators import gradients
from quantnet_jax.training.state import create_state
from quantnet_jax.trees import tree

RATE, META_RATE, MOMENTUM = 0.3, 0.2, 0.9


def linear_apply(variables, image, train):
    """Logits of a linear network: one matrix, one float bias."""
    params = variables["params"]
    return image @ params["kernel"] + params["bias"][None], {}


def sgd(rate, momentum=0.0):
    return optim.optimizer("sgd", lambda step: rate, momentum=momentum)


def linear_state(quantizer, tx):
    params = {"kernel": jnp.asarray(0.4 * normal(0, (5, 4))), "bias": jnp.zeros(4)}
    q = tree.tree_quantizer([tree.Rule("kernel", quantizer, "model")], params)
    if q.project is not None:
        tx = optim.projected(tx, q.project)
    if q.gradient is not None:
        tx = optim.delayed(tx)
    state = create_state({"params": params}, q, tx, jax.random.key(1))
    estimator = gradients.joint
    if q.gradient is not None:
        rate = lambda step: RATE
        estimator = lambda loss, prepare: gradients.delayed(loss, prepare, rate, q, tx)
    step = make_step(linear_apply, q, tx, ready_task(), estimator)
    return state, jax.jit(lambda state, batch: step(state, None, batch, None))


def batches(count, size=6):
    rng = np.random.default_rng(3)
    for _ in range(count):
        yield {
            "image": jnp.asarray(rng.normal(size=(size, 5)), jnp.float32),
            "label": jnp.asarray(rng.integers(0, 4, size), jnp.int32),
            "mask": jnp.ones(size),
        }
