"""Where learned parameters start, how schedules are read, and refused options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import KEY, SHAPE, close, weights

from quantnet_jax.core import schedules
from quantnet_jax.quantizers import create


def root_mean_square(x):
    return np.sqrt(np.square(x.astype(np.float64)).mean())


def test_learned_parameters_start_where_they_should():
    w = weights()
    cases = [("lsq", b) for b in (1, 2, 4)] + [("pact", 1), ("pact", 3)]
    cases += [(name, b) for name in ("dsq", "lq_nets") for b in (1, 2, 3)]
    cases += [("quantization_networks", 1)]
    made = {case: create(case[0], bits=case[1]) for case in cases}
    made["recu"] = create("recu")
    inits = lambda w: {str(case): q.init(KEY, w) for case, q in made.items()}
    found = jax.jit(inits)(jnp.asarray(w))
    start = lambda *case: found[str(case)].value
    mean, rms = np.abs(w.astype(np.float64)).mean(), root_mean_square(w)
    close(start("lsq", 1), mean)
    close(start("lsq", 2), 2 * mean)
    close(start("lsq", 4), 2 * mean / np.sqrt(7))
    close(start("pact", 1), mean)
    close(start("pact", 3), 3 * rms)
    for bits in (1, 2, 3):
        p = start("dsq", bits)
        alpha = 0.5 / (1 + np.exp(-float(p["alpha"])))
        assert alpha == pytest.approx(0.2) and float(p["u"]) == -float(p["l"]) > 0
        for c in range(SHAPE[-1]):
            r = 0.6745 * root_mean_square(w[..., c])
            expected = [r * 2**j / 2 ** (bits - 1) for j in range(bits)]
            close(start("lq_nets", bits)[c], expected)
    log_scale, none = found["recu"]
    close(np.exp(log_scale.value), np.abs(w).mean((0, 1, 2), keepdims=True))
    assert none == ()
    p = start("quantization_networks", 1)
    close(p["b"], 1.25 / np.abs(w).max())
    close(p["a"] * p["b"], 1.0)
    assert p["c"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("dsq_soft", "sharpness"),
        ("quantization_networks", "sharpness"),
        ("irnet", "t"),
        ("adabin", "t"),
        ("recu", "progress"),
        ("proxquant", "strength"),
    ],
)
def test_schedules_are_read_at_the_step(name, option):
    """A schedule at step 7 is the number that it gives there, and no other."""
    w = jnp.asarray(weights())
    schedule = schedules.linear(0.2, 0.9, 10)
    number = 0.2 + 0.7 * np.float32(0.7)

    def seen(value):
        q = create(name, **{option: value})

        def run(w, step):
            qparams = q.init(KEY, w)
            if q.project:
                return q.project(qparams, w, step=step)[1]
            return jax.grad(lambda w: jnp.sum(w * q.soft(qparams, w, step=step)))(w)

        return run

    moving, still = seen(schedule), seen(number)
    run = jax.jit(lambda w: (moving(w, 7), still(w, 0), moving(w, 1)))
    late, constant, early = run(w)
    close(late, constant)
    assert not np.allclose(late, early, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("swish_sign", {"beta": 0.0}, "beta=0.0"),
        ("xnor", {"per": "layer"}, "per='layer'"),
        ("dorefa", {"bits": 9}, "bits=9"),
        ("lsq", {"bits": 0}, "bits=0"),
        ("pact", {"bits": 0}, "bits=0"),
        ("dsq", {"bits": 0}, "bits=0"),
        ("twn", {"threshold": -0.1}, "threshold=-0.1"),
        ("lq_nets", {"bits": 5}, "bits=5"),
        ("lq_nets", {"momentum": 1.0}, "momentum=1.0"),
        ("quantization_networks", {"bits": 4}, "bits=4"),
        ("recu", {"lowest": 0.4}, "lowest=0.4"),
        ("recu", {"highest": 1.0}, "highest=1.0"),
        ("binarizing_by_classification", {"width": 0}, "width=0"),
        ("metaquant", {"width": 0}, "width=0"),
        ("metaquant", {"network": "fc"}, "network='fc'.*multifc"),
        ("metaquant", {"forward": "xnor"}, "forward='xnor'.*bwn"),
        ("metaquant", {"nonlinearity": "gelu"}, "nonlinearity='gelu'"),
    ],
)
def test_bad_options_are_errors_of_one_line(name, options, word):
    with pytest.raises(ValueError, match=word) as error:
        create(name, **options)
    assert "\n" not in str(error.value)
