"""The top of the package: what is there, what it imports, how its things print."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from artifacts import SPEC, make_params

import quantnet_jax as qn


def test_every_quantizer_and_combinator_is_at_the_top():
    for name, member in qn.quantizers.MEMBERS.items():
        assert getattr(qn, name) is member.factory and name in qn.__all__, name
    made = (qn.chain, qn.straight_through, qn.per_channel, qn.bit_planes)
    assert {f.__module__ for f in made} == {"quantnet_jax.core.combine"}


def test_every_name_is_there_and_no_other():
    assert set(qn.__all__) <= set(dir(qn))
    assert all(getattr(qn, name) is not None for name in qn.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'bread'"):
        qn.bread  # noqa: B018


CHECK = """
import sys
import quantnet_jax as qn
qn.quantnet, qn.schedules.exponential, qn.packing.pack, qn.ops.conv2d, qn.load
third = ("flax", "optax", "orbax", "safetensors", "ml_collections", "PIL", "grain")
print([x for x in third if x in sys.modules])
print([x for x in ("deploy", "models", "tasks", "data", "training", "zoo")
       if f"quantnet_jax.{x}" in sys.modules])
assert qn.NetworkSpec and qn.models.names() and "flax" in sys.modules
print([x for x in ("optax", "orbax", "ml_collections") if x in sys.modules])
"""


def test_import_needs_jax_alone_until_more_is_asked_for():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]", "[]"], done.stderr


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (qn.identity, "identity()"),
        (lambda: qn.dorefa(bits=2), "dorefa(bits=2)"),
        (lambda: qn.quantizers.create("xnor"), "xnor(per='channel')"),
        (
            lambda: qn.irnet(t=qn.schedules.exponential(0.1, 10.0, 9)),
            "irnet(t=exponential)",
        ),
        (
            lambda: qn.per_channel(qn.add_penalty(qn.twn(), signs, 2.0)),
            "per_channel(add_penalty(twn(threshold=0.7), signs, 2.0))",
        ),
        (
            lambda: qn.chain(qn.Reparam(lambda key, w: (), signs), qn.identity()),
            "chain(Reparam(signs), identity())",
        ),
        (lambda: qn.identity()._replace(soft=signs), "Quantizer(signs)"),
        (
            lambda: qn.tree_quantizer(
                [qn.Rule("a", qn.lsq())], {"a": jnp.ones((2, 2))}
            ),
            "tree_quantizer(1 tensor)",
        ),
    ],
)
def test_quantizer_prints_what_made_it(make, text):
    assert repr(make()) == text


def signs(qparams, w, **_):
    return jnp.sign(w)


def test_the_quantizer_inside_keeps_its_own_text():
    inner = qn.twn(threshold=0.5)
    outer = qn.add_penalty(inner, lambda *_, **__: jnp.zeros(()))
    assert repr(inner) == "twn(threshold=0.5)" != repr(outer)
    w = jax.random.normal(jax.random.key(0), (3, 4))
    assert (outer.soft((), w, step=0) == inner.soft((), w, step=0)).all()


def test_predictor_prints_in_a_line():
    params = qn.deploy.pack_tree(make_params())
    predictor = qn.deploy.make_predictor(params, SPEC)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    network = "small, classification, uint8[N, 8, 8, 1] -> 3 outputs"
    assert repr(predictor) == f"Predictor({network}, {size} bytes)"
