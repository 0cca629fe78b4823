"""The protocols of the CIFAR comparisons: valid, equal for all rows, complete."""

import pathlib
import statistics

import pytest

from benchmarks import (
    cifar100_page,
    cifar100_plan,
    protocol_rows,
    protocols,
    runs,
)
from benchmarks.protocols import PROTOCOLS
from quantnet_jax import config as config_lib
from quantnet_jax import quantizers
from quantnet_jax.training import experiment

ROOT = pathlib.Path(__file__).parent.parent


# Between them they have all rows.
@pytest.mark.parametrize("name", ["small", "small_ladder", "A56", "C"])
def test_rows_are_valid(name):
    protocol = PROTOCOLS[name]
    for row, given in protocol.rows.items():
        start = protocol.starts_of(row)[0]
        c = protocols.configuration(
            protocol, row, start, rate=0.1, seed=1, held_out=True
        )
        config_lib.check(c)
        experiment.make_rules(c, 100)
        assert c.data.validation_size == protocol.validation_size and not c.init_from
        if section := quantizers.recipe(given.method).get("sharpness"):
            own = c.quantizer[given.method].sharpness.start
            changed = any(k.endswith("sharpness.start") for k in given.changes)
            assert changed or own == section["start"] * start.sharpness


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_sound(name):
    protocol = PROTOCOLS[name]
    assert next(iter(protocol.rows)) == "float" and "quantnet" in "".join(protocol.rows)
    searched = set()
    for row, given in protocol.rows.items():
        if given.like:
            assert not protocol.rows[given.like].like
        elif row != "float":
            searched.add(len(list(cifar100_plan.search_runs(protocol, row))))
    start = protocol.starts_of("float")[0]
    config_lib.check(
        protocols.configuration(
            protocol, "float", start, rate=0.1, seed=1, held_out=False
        )
    )
    assert len(searched) == 1, "a row is searched more than another one"
    labels = [r.label for r in cifar100_plan.plan(protocol, pathlib.Path("nowhere"))]
    assert len(labels) == len(set(labels))
    assert len({s.float_epochs for s in protocol.starts if s.float_epochs}) == 1
    if not protocol.float_starts:  # one budget, however it is spent
        assert len({s.float_epochs + s.epochs for s in protocol.starts}) == 1


def test_rows_of_a_protocol_differ_in_the_method_alone():
    protocol, wanted = PROTOCOLS["small"], None
    for row in protocol.rows:
        c = protocols.configuration(
            protocol, row, protocol.starts[1], rate=0.1, seed=0, held_out=False
        )
        flat = runs.settings(c)
        rest = {k: v for k, v in flat.items() if not k.startswith("quantizer.")}
        assert (wanted := wanted or rest) == rest
    assert wanted["data.classes"] == 20 and wanted["layers"] == "inner"


def test_the_small_protocol_covers_the_family():
    methods = {row.method for row in PROTOCOLS["small"].rows.values()}
    # The same function as binary_ste; of two bits.
    assert methods == set(quantizers.MEMBERS) - {"magnitude_aware", "twn"}


FACTORS = {
    "unit": {"weight", "filter", "conv"},
    "width": None,
    "depth": None,
    "skip": {False},
    "norm": {"standard", "none"},
    "share": {"layer", "shape", "model"},
    "sharpness.start": None,
    "sharpness.end": None,
    "sharpness.until": None,
    "sharpness.schedule": {"linear"},
    "penalty.end": None,
    "scale": {"mean_abs", "learned"},
    "mode": {"bilevel"},
    "exact": {True},
}
"""What each part of QuantNet may be instead; None: some other number."""


@pytest.mark.parametrize("name", ["ladder", "small_ladder"])
def test_the_ladder_has_a_row_for_each_factor(name):
    protocol = PROTOCOLS[name]
    tried, recipe = {}, quantizers.recipe("quantnet")
    for row in protocol.rows.values():
        for key, value in row.changes.items() if row.method == "quantnet" else ():
            factor = key.removeprefix("quantizer.quantnet.").removeprefix("meta.")
            tried.setdefault(factor, set()).add(value)
    for factor, wanted in FACTORS.items():
        default = recipe
        for key in factor.split("."):
            default = default.get(key, {}) if isinstance(default, dict) else None
        others = {x for x in tried.get(factor, ()) if x != default}
        assert others >= (wanted or set()) and others, factor
    starts = {row.start for row in protocol.rows.values()}
    assert starts == {"", "scratch", "warm"}
    # BatchNorm: every run has both numbers.
    assert {"hard", "hard_bn"} <= set(runs.CURVE)


def test_short_protocol_takes_what_the_ladder_found():
    ladder, short = PROTOCOLS["small_ladder"], PROTOCOLS["small_short"]
    folder = ROOT / "results" / "cifar100" / "small_ladder"
    means = {}
    for name in ladder.rows:
        found = cifar100_page.final_results(ladder, folder, name)
        assert len(found) == len(ladder.seeds), name
        means[name] = statistics.mean(r["hard_bn"] for r in found)
    for name, best in protocol_rows.SMALL_TUNED.items():
        method = short.rows[name].method
        rivals = [r for r, row in ladder.rows.items() if row.method == method]
        assert len(rivals) > 3 and means[best] == max(means[r] for r in rivals), name
