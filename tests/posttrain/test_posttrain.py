"""Inputs of layers, captured from any traced network; the driver over all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import quantnet_jax as qn
from quantnet_jax import posttrain
from quantnet_jax.models.mobilenet import MobileNet
from quantnet_jax.posttrain.capture import evaluate
from quantnet_jax.trees.paths import flatten

CONV = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
QUIET = {"report": lambda line: None}


def conv(x, w, **options):
    return lax.conv_general_dilated(x, w, **CONV | options)


CASES = {
    "strides and padding": (
        lambda p, x: conv(x, p, window_strides=(2, 1), padding=((1, 2), (0, 1))),
        (3, 2, 4, 6), (2, 7, 6, 4),
    ),
    "dilated, transposed": (
        lambda p, x: conv(x, p, window_strides=(1, 1), padding=((2, 2), (1, 2)),
                          lhs_dilation=(2, 2), rhs_dilation=(1, 2)),
        (3, 2, 2, 3), (2, 4, 5, 2),
    ),
    "groups": (
        lambda p, x: conv(x, p, window_strides=(1, 1), padding="SAME",
                          feature_group_count=2),
        (3, 3, 2, 6), (2, 5, 5, 4),
    ),
    "depthwise": (
        lambda p, x: conv(x, p, window_strides=(2, 2), padding="SAME",
                          feature_group_count=4),
        (3, 3, 1, 8), (2, 6, 6, 4),
    ),
    "other layout, cast": (
        lambda p, x: lax.conv_general_dilated(
            x, p.transpose(3, 2, 0, 1).astype(jnp.bfloat16).astype(jnp.float32),
            (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
        ) if p.ndim == 3 else lax.conv_general_dilated(
            x, p.transpose(3, 2, 0, 1), (1, 1), "SAME",
            dimension_numbers=("NCHW", "OIHW", "NCHW")),
        (3, 3, 2, 5), (2, 2, 4, 4),
    ),
    "heads": (lambda p, x: jnp.einsum("btd,dhk->bhtk", x, p), (4, 2, 3), (2, 5, 4)),
    "weights first": (lambda p, x: jnp.matmul(p, x.T), (6, 4), (5, 4)),
    "experts": (lambda p, x: jnp.einsum("ebd,edk->ebk", x, p), (3, 4, 2), (3, 5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_inputs_times_weights_are_the_outputs(case):
    """Rows times the arranged weights have the numbers that the product has."""
    apply, shape, of_input = CASES[case]
    keys = jax.random.split(jax.random.key(0), 2)
    w, x = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], of_input)
    found = []

    def visit(use, operand):
        weights = w.reshape(-1)[use.matrix]
        found.append(jnp.einsum("grn,gnm->grm", use.rows(operand), weights))
        return operand

    made = evaluate(lambda p, x: apply(p["w"], x), {"w": w}, x, visit)
    wanted = apply(w, x)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
    (mine,) = found
    assert mine.size == wanted.size
    ordered = lambda a: np.sort(np.ravel(a))
    np.testing.assert_allclose(ordered(mine), ordered(wanted), rtol=1e-4, atol=1e-4)


def small(seed=0, layers=3, width=6):
    """Parameters of a network of equal layers, stacked, and inputs."""
    keys = jax.random.split(jax.random.key(seed), 3)
    stacked = jax.random.normal(keys[0], (layers, width, width)) / np.sqrt(width)
    params = {"layers": stacked, "head": jax.random.normal(keys[1], (width, 2))}
    return params, jax.random.normal(keys[2], (2, 20, width))


def scanned(params, x):
    x, _ = lax.scan(lambda h, w: (jax.nn.relu(h @ w) + h, None), x, params["layers"])
    return x @ params["head"]


def looped(params, x):
    @jax.checkpoint
    def one(w, h):
        return jax.nn.relu(h @ w) + h

    for w in params["layers"]:
        x = one(w, x)
    return x @ params["head"]


def test_a_scan_and_a_loop_get_the_same_codes():
    params, batches = small()
    rules = [qn.Rule(".*", posttrain.gpfq(bits=3))]
    lines = []
    one = posttrain.posttrain(
        scanned, params, list(batches), rules, report=lines.append
    )
    two = posttrain.posttrain(looped, params, list(batches), rules, **QUIET)
    assert [line.path for line in lines] == ["layers"] * 3 + ["head"]
    for name in params:
        np.testing.assert_array_equal(one[name].codes, two[name].codes)
        qn.core.qtensor.validate(one[name], name)
    assert one["layers"].scale.shape == (3, 1, 6) and one["layers"].levels.shape == (7,)
    # The reported error is that of the layer itself.
    x = batches.reshape(-1, 6)
    real, made = x @ params["layers"][0], x @ qn.dequantize(one["layers"])[0]
    wanted = np.sum((real - made) ** 2) / np.sum(real**2)
    assert lines[0].error == pytest.approx(float(wanted), rel=1e-3)


def test_later_layers_make_up_for_earlier_ones():
    params, batches = small(1)
    x = batches.reshape(-1, 6)
    rules = [qn.Rule("layers|head", posttrain.error_feedback(bits=2))]
    made = qn.dequantize_tree(posttrain.posttrain(scanned, params, [x], rules, **QUIET))
    alone = {
        name: qn.dequantize(
            posttrain.posttrain(
                lambda p, x: x @ p["w"] if p["w"].ndim == 2 else 0.0,
                {"w": w}, [x], [qn.Rule("w", posttrain.rtn(bits=2))], **QUIET
            )["w"]
        )
        for name, w in params.items() if w.ndim == 2
    }  # fmt: skip
    far = lambda p: float(jnp.sum((scanned(p, x) - scanned(params, x)) ** 2))
    assert far(made) < far(made | alone)


def test_resumed_layers_are_not_computed_again(tmp_path):
    params, batches = small(2)
    rules = [
        qn.Rule("layers", posttrain.gpfq(bits=2)),
        qn.Rule("head", posttrain.rtn()),
    ]
    run = lambda **more: posttrain.posttrain(
        scanned, params, list(batches), rules, folder=tmp_path, **QUIET | more
    )

    class Stopped(Exception):
        pass

    def stop(line):
        if line.layer == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(report=stop)
    assert len(list(tmp_path.iterdir())) == 2
    stamp = (tmp_path / "0000.safetensors").stat().st_mtime_ns
    made, fresh = (
        run(),
        posttrain.posttrain(scanned, params, list(batches), rules, **QUIET),
    )
    assert (tmp_path / "0000.safetensors").stat().st_mtime_ns == stamp
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list(tmp_path.iterdir())) == 4
    run(seed=1)  # other draws: nothing fits any more
    assert (tmp_path / "0000.safetensors").stat().st_mtime_ns != stamp
    (tmp_path / "0001.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="0001.safetensors: .*delete it"):
        run(seed=1)


def test_networks_of_the_package_mixed_rules_and_groups():
    model = MobileNet(outputs=3, width=4, blocks=((2, 2),))
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params = variables["params"]
    rest = {k: v for k, v in variables.items() if k != "params"}
    apply = lambda p, x: model.apply({"params": p, **rest}, x)
    rules = [
        qn.Rule("stem/kernel", posttrain.ausn(bits=4)),
        qn.Rule("(?!stem/).*kernel", posttrain.gpfq(bits=4)),
    ]
    made = posttrain.posttrain(apply, params, [x], rules, positions=0.5, **QUIET)
    kinds = {k: v.bits for k, v in flatten(made).items() if isinstance(v, qn.QTensor)}
    assert kinds == {k: 4 for k in flatten(params) if k.endswith("kernel")}
    far = apply(qn.dequantize_tree(made), x) - apply(params, x)
    assert float(jnp.mean(far**2)) < 0.05 * float(jnp.mean(apply(params, x) ** 2))


@pytest.mark.parametrize(
    ("rules", "batches", "message"),
    [
        ([("nothing", "gpfq")], None, "matches no parameter"),
        ([("bias", "gpfq")], None, "'bias': gpfq.* needs the inputs of a conv"),
        ([("w", "gpfq")], [], "`batches` is empty"),
        ([("w", "gpfq")], iter([1]), "`batches` is an iterator"),
        ([("w", None)], None, r"'w': its rule has identity\(\), expected a method"),
    ],
)
def test_refuses_in_one_line(rules, batches, message):
    params = {"w": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    apply = lambda p, x: x @ p["w"] + p["bias"][None]
    make = lambda name: posttrain.METHODS[name]() if name else qn.identity()
    rules = [qn.Rule(pattern, make(name)) for pattern, name in rules]
    batches = [jnp.ones((4, 3))] if batches is None else batches
    with pytest.raises(ValueError, match=message) as e:
        posttrain.posttrain(apply, params, batches, rules, **QUIET)
    assert "\n" not in str(e.value)


def test_parameters_without_a_product_take_methods_without_inputs():
    params = {"table": jax.random.normal(jax.random.key(0), (6, 4))}
    apply = lambda p, x: p["table"][x]
    rules = [qn.Rule("table", posttrain.rtn(bits=4), out=0)]
    made = posttrain.posttrain(apply, params, [jnp.arange(3)], rules, **QUIET)
    assert made["table"].scale.shape == (6, 1)


def test_weights_that_are_not_finite_are_refused():
    params = {"kernel": jnp.ones((4, 3)).at[0, 0].set(jnp.nan)}
    rules = [qn.Rule("kernel", posttrain.METHODS["gpfq"]())]
    apply = lambda p, x: x @ p["kernel"]
    with pytest.raises(ValueError, match="^kernel: not every weight is finite$"):
        posttrain.posttrain(apply, params, [jnp.ones((2, 4))], rules, **QUIET)
