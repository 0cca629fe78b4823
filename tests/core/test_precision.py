"""Parameters of other dtypes, what no rule may claim, weights that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantnet_jax as qn

DTYPES = ("bfloat16", "float16", "float32")


@pytest.fixture(scope="module")
def params():
    """Kernels of three dtypes and one shape, and what no rule should claim."""
    rng = np.random.default_rng(0)
    make = lambda dtype: jnp.asarray(rng.normal(size=(3, 2, 4)), dtype)
    others = {"empty": jnp.zeros((0, 4)), "scalar": jnp.float32(2), "act": jax.nn.relu}
    return {name: make(name) for name in DTYPES} | others


@pytest.mark.parametrize("q", [qn.lsq(bits=2), qn.proxquant(), qn.metaquant(width=2)])
def test_values_are_those_of_float32_rounded_once(q, params):
    tree = qn.tree_quantizer([qn.Rule("b?float.*", q)], params)
    qparams = tree.init(jax.random.key(0), params)
    soft, hard = tree.soft(qparams, params, step=0), tree.hard(qparams, params)
    gradient = tree.gradient and tree.gradient(qparams, params, params, step=0)
    moved = tree.project and tree.project(qparams, params, step=0)[1]
    for name in DTYPES:
        w, own = params[name], qparams[name]
        wide = w.astype(jnp.float32)
        pairs = [(soft, q.soft(own, wide, step=0))]
        if gradient:
            pairs += [(gradient, q.gradient(own, wide, wide, step=0))]
        if moved:
            pairs += [(moved, q.project(own, wide, step=0)[1])]
        for found, wanted in pairs:
            assert found[name].dtype == w.dtype
            np.testing.assert_allclose(
                found[name].astype(jnp.float32),
                wanted.astype(w.dtype).astype(jnp.float32),
                rtol=float(jnp.finfo(w.dtype).eps),
                atol=1e-7,
            )
        assert hard[name].scale.dtype == hard[name].levels.dtype == jnp.float32
        wanted = qn.dequantize(q.hard(own, wide))
        np.testing.assert_allclose(qn.dequantize(hard[name]), wanted, rtol=1e-6)
        # Without a tree, too.
        assert q.soft(own, w, step=0).dtype == w.dtype
    assert soft["act"] is jax.nn.relu


def test_a_network_of_half_precision_trains(params):
    q = qn.tree_quantizer([qn.Rule("bfloat16", qn.quantnet(width=2))], params)
    params = {name: params[name] for name in DTYPES}
    qparams = q.init(jax.random.key(0), params)

    def loss(qparams, params):
        w = q.soft(qparams, params, step=1)["bfloat16"]
        return jnp.sum(w.astype(jnp.float32) ** 2)

    grads = jax.grad(loss, (0, 1))(qparams, params)
    assert {x.dtype for x in jax.tree.leaves(grads[0])} == {jnp.dtype("float32")}
    assert grads[1]["bfloat16"].dtype == jnp.bfloat16
    assert (grads[1]["bfloat16"] != 0).any() and (grads[1]["float16"] == 0).all()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            [qn.Rule("empty", qn.twn())],
            r"'empty' claims 'empty', of shape \(0, 4\); only",
        ),
        ([qn.Rule(".*r", qn.twn())], r"'.\*r' claims 'scalar', a scalar; only"),
        ([qn.Rule("act", qn.twn())], "'act' claims 'act', a .*; only"),
        ([qn.Rule("act", qn.quantnet)], "'act': .* no Quantizer; call it: quantnet"),
        ([qn.Rule("act", "twn")], "'act': 'twn' is no Quantizer$"),
        ([qn.Rule(7, qn.twn())], "rule 0 has 7, expected a string"),
        ([("act", qn.twn())], r"rule 0 has \('act', twn.*, expected Rule\(...\)"),
        (
            qn.Rule("act", qn.twn()),
            r"`rules` is Rule\(.* expected a list of Rule\(...\)",
        ),
        (None, "`rules` is None, expected a list of Rule"),
    ],
)
def test_what_is_no_rule_or_no_tensor_is_refused(rules, words, params):
    with pytest.raises(ValueError, match=words) as error:
        qn.tree_quantizer(rules, params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["clipped_ste", "binary_ste", "twn", "tanh_sign"])
def test_weights_that_are_not_finite_are_in_no_file(name, bad, tmp_path):
    w = jnp.ones((4, 3)).at[1, 2].set(bad)
    params = {"a": {"kernel": w}, "b": {"kernel": jnp.ones((4, 3))}}
    q = qn.tree_quantizer([qn.Rule(".*", qn.quantizers.create(name))], params)
    hard = q.hard(q.init(jax.random.key(0), params), params)
    assert not jnp.isfinite(hard["a"]["kernel"].scale).any()
    assert jnp.isfinite(hard["b"]["kernel"].scale).all()
    with pytest.raises(ValueError, match="^a/kernel:scale: not every number is finite"):
        qn.save(tmp_path / "own.safetensors", hard)
    assert not list(tmp_path.iterdir())
