"""Tests of warm starts: what matches is copied, the rest is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax.checkpoint.warm_start import warm_start


def test_warm_start_reports_what_matched():
    like = {
        "params": {"a": jnp.zeros(3), "head": jnp.zeros((4, 10)), "new": jnp.zeros(1)},
        "batch_stats": {"a/b": jnp.zeros(2)},
    }
    saved = {
        "params/a": np.arange(3, dtype=np.float32),
        "params/head": np.ones((4, 100), np.float32),
        "batch_stats/a/b": np.full(2, 5, np.float32),
        "params/quant/x": np.ones(1, np.float32),
    }
    out, report = warm_start(like, saved)
    assert jax.tree.structure(out) == jax.tree.structure(like)
    assert out["params"]["a"].tolist() == [0, 1, 2]
    assert out["batch_stats"]["a/b"].tolist() == [5, 5]
    assert not out["params"]["head"].any() and not out["params"]["new"].any()
    assert set(report.matched) == {"params/a", "batch_stats/a/b"}
    assert report.missing == ("params/new",)
    assert report.unexpected == ("params/quant/x",)
    assert report.mismatched == ("params/head: float32[4,100] -> float32[4,10]",)
    assert "2 matched" in str(report) and "params/new" in str(report)
    nested, _ = warm_start(like, {"params": {"a": jnp.ones(3)}})
    assert nested["params"]["a"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="init_from matches none of the 4"):
        warm_start(like, {"params/b": np.ones(3)})
    with pytest.raises(ValueError, match=r"such as params/a: float32\[4\] -> "):
        warm_start(like, {"params/a": np.ones(4, np.float32)})
