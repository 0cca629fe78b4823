"""The studies under sweeps/: valid, fair, and those that their records were made by."""

import statistics

import pytest

from quantnet_jax import config as config_lib
from quantnet_jax import quantizers
from quantnet_jax.experiments import columns, grid, results, tables
from quantnet_jax.experiments.study import FLOAT, Run
from quantnet_jax.quantizers import members
from quantnet_jax.training import parts
from sweeps import rows
from tools import plots
from tools import tables as pages

NAMES = grid.names()
RECORDED = [n for n in NAMES if results.read(n)]


def configured(study, row, **changes):
    """The configuration of a run of a row at some learning rate."""
    given = study.rows[row]
    like = grid.load(study.search_from) if study.search_from else study
    start = like.initializations_of(given.like or row)[0]
    run = Run("final", row, "x", start, 0.1, 1, study.validate)
    return study.configure(study, run._replace(**changes))


# Between them they have all rows.
@pytest.mark.parametrize(
    "name",
    ["gap_table", "small", "small_ablation", "resnet56", "resnet20_bits"]
    + ["bundled_ablation"],
)
def test_rows_are_valid(name):
    study = grid.load(name)
    for row, given in study.rows.items():
        c = configured(study, row, validate=True)
        config_lib.check(c)
        parts.make_rules(c, 100)  # refuses options that a factory lacks
        assert c.data.validation_size == study.validation_size and not c.init_from
        if section := quantizers.options(given.method).get("sharpness"):
            own = c.quantizer[given.method].sharpness.start
            changed = any(k.endswith("sharpness.start") for k in given.changes)
            factor = study.initializations[0].sharpness
            # Studies keep the recipe of their first runs.
            start = 0.3 if section == members.SHARPNESS else section["start"]
            assert changed or own == start * factor


@pytest.mark.parametrize("name", NAMES)
def test_studies_are_sound(name):
    study = grid.load(name)
    assert "quantnet" in {row.method for row in study.rows.values()}
    assert set(study.columns) <= set(columns.COLUMNS)
    shown = tables.section(name, study, results.of_study(name, study, results.FOLDER))
    assert shown.count("\n| ") >= len(study.rows)
    searched = set()
    for row, given in study.rows.items():
        if given.like and not study.search_from:
            assert not study.rows[given.like].like
        elif row != FLOAT:
            searched.add(len(list(grid.search_runs(study, row))))
    assert len(searched) == 1, "a row is searched more than another one"
    config_lib.check(configured(study, next(iter(study.rows))))
    labels = [r.label for r in grid.plan(study, {})]
    assert len(labels) == len(set(labels))
    assert not [x for x in labels if set(x) & set(" :=,|")]
    starts = study.initializations
    assert len({x.float_epochs for x in starts if x.float_epochs}) <= 1
    if not study.float_initializations:  # one budget, however it is spent
        assert len({x.float_epochs + x.epochs for x in starts}) == 1


@pytest.mark.parametrize("name", ["small", "gap_table"])
def test_rows_of_a_study_differ_in_the_method_alone(name):
    study, wanted = grid.load(name), None
    for row, given in study.rows.items():
        if any(k.startswith(("activation", "model")) for k in given.changes):
            continue
        flat = results.settings(configured(study, row))
        rest = {k: v for k, v in flat.items() if not k.startswith("quantizer.")}
        assert (wanted := wanted or rest) == rest


def test_the_family_is_covered():
    methods = lambda name: {row.method for row in grid.load(name).rows.values()}
    binary = {n for n, m in quantizers.MEMBERS.items() if 1 in m.bits}
    # Levels and inputs that it needs are not those of a binary convolution.
    assert methods("small") == binary - {"direct", "bitat"} | {"identity"}
    assert methods("gap_table") == set(quantizers.MEMBERS)
    for name, member in quantizers.MEMBERS.items():
        for label in member.variants:
            assert f"{name}: {label}" in grid.load("gap_table").rows


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


def test_the_ablation_has_a_row_for_each_factor():
    tried, recipe = {}, quantizers.options("quantnet")
    for row in rows.ablation().values():
        for key, value in row.changes.items() if row.method == "quantnet" else ():
            factor = key.removeprefix("quantizer.quantnet.").removeprefix("meta.")
            tried.setdefault(factor, set()).add(value)
    for factor, wanted in FACTORS.items():
        default = recipe
        for key in factor.split("."):
            default = default.get(key, {}) if isinstance(default, dict) else None
        others = {x for x in tried.get(factor, ()) if x != default}
        assert others >= (wanted or set()) and others, factor
    starts = {row.initialization for row in rows.ablation().values()}
    assert starts == {"", "scratch", "warm"}


# Records ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECORDED)
def test_records_are_of_the_study_as_it_is(name):
    """Each recorded run is planned, with the settings that it was made with."""
    study = grid.load(name)
    records = results.of_study(name, study, results.FOLDER)
    plan = {r.label: r for r in grid.plan(study, records)}
    own = [r for r in records.values() if r["study"] == name]
    assert own
    for record in own:
        run = plan[record["label"]]
        assert grid.record_of(records, run) is record
        assert (record["row"], record["seed"]) == (run.row, run.seed)
        assert record["epochs"] == pytest.approx(run.epochs)
        config = study.configure(study, run)
        skipped = {"init_from", "eval_every"}
        wanted = {k: v for k, v in results.settings(config).items() if k not in skipped}
        assert not results.changed(record, wanted, study.rows[run.row])
        assert record["settings"]["weights.learning_rate"] == run.learning_rate


def test_short_study_takes_what_the_ablation_found():
    study, short = grid.load("small_ablation"), grid.load("small_short")
    records = results.of_study("small_ablation", study, results.FOLDER)
    means = {}
    for name in study.rows:
        found = columns.finals(study, records, name)
        assert len(found) == len(study.seeds), name
        means[name] = statistics.mean(r["hard_bn"] for r in found)
    for name, best in rows.SMALL_TUNED.items():
        method = short.rows[name].method
        rivals = [r for r, row in study.rows.items() if row.method == method]
        assert len(rivals) > 3 and means[best] == max(means[r] for r in rivals), name


# Pages --------------------------------------------------------------------------------
def test_pages_are_up_to_date():
    blocks = 0
    for path in pages.pages():
        text = path.read_text("utf-8")
        assert pages.filled(text) == text, f"{path}: run python -m tools.tables"
        blocks += text.count("<!-- table: ")
    assert blocks > 20


def test_plots_are_of_their_records():
    assert plots.stale(results.FOLDER) == {}, "run python -m tools.plots"
    shown = "".join(path.read_text("utf-8") for path in pages.pages())
    files = {path.stem for path in plots.FOLDER.iterdir()}
    assert files == set(plots.PLOTS)
    for name in files:
        assert f"(plots/{name}.svg)" in shown


def test_plot_is_drawn_once_for_its_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    data = {"quantnet": (66.0, 0.5), "float": (68.0, 0.0)}
    plot = plots.Plot(lambda _: data, plots.PLOTS["claim"].draw)
    path = tmp_path / "plots" / "one.svg"
    plots.drawn(plot, data, path)
    text = path.read_text("utf-8")
    assert plots.mark(data) in text and ">quantnet<" in text
    assert plots.mark(data | {"float": (68.1, 0.0)}) not in text
    plots.drawn(plot, data, path)
    assert path.read_text("utf-8") == text


def test_tables_that_are_none(tmp_path):
    fill = lambda text: pages.filled(text, tmp_path)
    with pytest.raises(ValueError, match="no table 'bread', expected one of"):
        fill("<!-- table: bread -->\n<!-- end -->")
    with pytest.raises(ValueError, match="no '<!-- end -->'"):
        fill("<!-- table: not run -->\n")
    text = fill("a\n<!-- table: not run -->\nold\n<!-- end -->\nb")
    assert "- `small_full`: 20 classes" in text and "old" not in text
    assert text.startswith("a\n") and text.endswith("<!-- end -->\nb")
    assert "| quantnet |  |  | not run |" in fill(
        "<!-- table: rows small -->\n<!-- end -->"
    )
