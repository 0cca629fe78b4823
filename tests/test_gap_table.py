"""The queue of the family on made-up results: its rows, what it runs, its page."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import gap_page, gap_rows, gap_table, runs
from quantnet_jax import config as config_lib
from quantnet_jax import quantizers
from quantnet_jax.evaluation import gap
from quantnet_jax.training import experiment

pytestmark = pytest.mark.cheap

LAYERS = {
    "a/kernel": {"shape": [3, 3, 2, 5], "bits": 1, "floats": [2, 5], "values": [2, 2]},
    "b/kernel": {"shape": [1, 1, 5, 1], "bits": 2, "floats": [4, 1], "values": [4, 3]},
}
SETTINGS = {"settings": {"epochs": 7.0, "data.validation_size": 0}}
DIVERGED = {"diverged": True, "message": "error: diverged at step 3"} | SETTINGS


def result(accuracy, layers=LAYERS, **more):
    """What a run of that accuracy leaves."""
    scores = {"soft": accuracy + 0.02, "hard": accuracy - 0.01, "hard_bn": accuracy}
    scores |= {"gap": 0.03, "gap_bn": 0.02, "layers": layers}
    about = {"device": "1 x cpu", "cores": 1}
    return scores | about | SETTINGS | more


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`made(kind, row, values)` writes results; its `folder` is that of 'bundled'."""
    monkeypatch.setattr(gap_table, "RESULTS", tmp_path)

    def save(kind, row, values):
        paths = getattr(gap_page, f"{kind}_paths")(save.folder, row).values()
        for path, value in zip(paths, values, strict=True):
            put(path, value)

    save.folder = tmp_path / "bundled"
    return save


@pytest.fixture
def calls(monkeypatch):
    """The configurations that were trained, each with a made-up result."""
    trained = []

    def train(config, workdir):
        assert pathlib.Path(workdir).is_dir()
        trained.append(config)
        return result(1.0 - config.weights.learning_rate / 10)

    monkeypatch.setattr(runs.train, "train", train)
    return trained


# Rows ---------------------------------------------------------------------------------
def test_queue_covers_every_member_and_variant():
    rows = gap_rows.rows()
    assert list(rows)[: len(quantizers.MEMBERS)] == list(quantizers.MEMBERS)
    for name, member in quantizers.MEMBERS.items():
        assert rows[name] == gap_rows.Row(name)
        for label, options in member.variants.items():
            assert rows[f"{name}: {label}"] == gap_rows.Row(name, options)
    bits = {row.bits for row in rows.values() if row.activation}
    assert {"1/1", "1/2", "2/2", "4/4"} <= bits
    slugs = [runs.slug(name) for name in rows]
    assert len(set(slugs)) == len(rows)
    assert not [x for x in slugs if set(x) & set(" :=/,")]


@pytest.mark.parametrize("data", gap_rows.SETTINGS)
def test_rows_differ_in_the_method_alone(data):
    wanted = None
    for row in gap_rows.rows().values():
        config = gap_rows.configuration(row, data, "somewhere")
        config_lib.check(config)
        experiment.make_rules(config, 100)  # refuses options that a factory lacks
        flat = runs.settings(config)
        used = {k: v for k, v in flat.items() if k.startswith("quantizer.")}
        assert used.pop("quantizer.name") == row.method
        assert (
            used.keys()
            == runs.settings(
                gap_rows.configuration(gap_rows.Row(row.method, row.options), data)
            ).keys()
            & used.keys()
        )
        if not row.activation:
            rest = {k: v for k, v in flat.items() if not k.startswith("quantizer.")}
            assert (wanted := wanted or rest) == rest


def test_bits_of_rows():
    rows = gap_rows.rows()
    assert rows["identity"].bits == "32/32"
    assert rows["quantnet"].bits == rows["binary_ste"].bits == "1/32"
    assert gap_rows.Row("quantnet", {"bits": 3}).bits == "3/32"


# Running ------------------------------------------------------------------------------
def test_search_then_finals_at_the_best_rate(made, calls):
    args = gap_table.parse(["row", "--only", "binary_ste"])
    assert gap_table.run_row("binary_ste", args) == 0
    search, final = calls[: len(gap_rows.RATES)], calls[len(gap_rows.RATES) :]
    assert [c.weights.learning_rate for c in search] == list(gap_rows.RATES)
    assert {(c.seed, c.epochs, c.data.validation_size) for c in search} == {
        (0, 3.0, 2000)
    }
    assert [c.seed for c in final] == list(gap_rows.SEEDS)
    # The made-up accuracy falls with the rate.
    best = gap_rows.RATES[0]
    for c in final:
        assert (c.weights.learning_rate, c.epochs, c.data.validation_size) == (
            best,
            7.0,
            0,
        )
    assert all(c.eval_every == c.epochs for c in calls)
    assert not list(made.folder.rglob("*.tmp"))


def test_existing_results_are_not_run_again(made, calls):
    args = gap_table.parse(["row", "--only", "binary_ste"])
    gap_table.run_row("binary_ste", args)
    count = len(calls)
    assert gap_table.run_row("binary_ste", args) == 0
    assert len(calls) == count
    gap_page.final_paths(made.folder, "binary_ste")[1].unlink()
    assert gap_table.run_row("binary_ste", args) == 0
    assert len(calls) == count + 1 and calls[-1].seed == 1


def test_results_of_other_settings_are_not_mixed_in(made, calls, capsys):
    gap_table.run_row("binary_ste", gap_table.parse(["row", "--only", "binary_ste"]))
    count = len(calls)
    capsys.readouterr()
    longer = gap_table.parse(["row", "--only", "binary_ste", "--epochs=9"])
    assert gap_table.run_row("binary_ste", longer) == 1
    assert len(calls) == count
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(gap_rows.SEEDS) and "epochs" in lines[0]


def test_changed_settings():
    old = {"seed": 0, "quantizer.name": "x", "quantizer.x.bits": 1}
    assert runs.changed(old, dict(old)) == []
    assert runs.changed(old, old | {"new_key": 1}) == []
    assert runs.changed(old, old | {"seed": 1}) == ["seed"]
    more = old | {"quantizer.x.width": 4}
    assert runs.changed(old, more) == ["quantizer.x.width"]
    assert runs.changed(more, old) == ["quantizer.x.width"]


def test_divergence_is_a_result_and_a_fault_is_none(made, monkeypatch, capsys):
    def train(config, workdir):
        if config.weights.learning_rate >= 0.3:
            raise SystemExit("error: diverged at step 7: loss nan")
        return result(0.5 + config.weights.learning_rate)

    monkeypatch.setattr(runs.train, "train", train)
    args = gap_table.parse(["row", "--only", "dorefa"])
    assert gap_table.run_row("dorefa", args) == 0
    found = runs.read(gap_page.search_paths(made.folder, "dorefa")[1.0])
    assert found["diverged"] is True and "step 7" in found["message"]
    assert gap_page.best_rate(made.folder, "dorefa") == 0.1

    for error in (RuntimeError("out of flour"), SystemExit("error: no such bread")):
        monkeypatch.setattr(runs.train, "train", lambda *_, e=error: fail(e))
        assert gap_table.run_row("lsq", gap_table.parse(["row", "--only", "lsq"])) == 1
        assert str(error) in capsys.readouterr().err
    assert not [p for p in gap_page.search_paths(made.folder, "lsq").values()
                if p.exists()]  # fmt: skip


def fail(error):
    raise error


@pytest.mark.parametrize(
    "words",
    [["run", "--only", "bread"], ["row"], ["run", "--jobs=0"], ["run", "--epochs=0"]],
)
def test_wrong_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as error:
        gap_table.parse(words)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_real_run(made, monkeypatch):
    """Through train.py: the result holds what the page needs."""
    original = gap_rows.configuration

    def tiny(*args):
        c = original(*args)
        c.model.name, c.data.name, c.data.image_size = "small", "synthetic", 8
        c.data.train_size, c.data.test_size, c.data.pad = 64, 32, 1
        c.model = {"name": "small"}
        c.batch_size = c.eval_batch_size = 16
        c.recalibration_batches = 1
        return c

    monkeypatch.setattr(gap_rows, "configuration", tiny)
    args = gap_table.parse(["row", "--only", "binary_ste"])
    path = made.folder / "final" / "x.json"
    changes = {"epochs": 1.0, "seed": 3, "weights.learning_rate": 0.03}
    assert gap_table.run_one("binary_ste", args, path, changes)
    found = runs.read(path)
    assert found["settings"]["seed"] == found["seed"] == 3
    assert found["soft"] == found["hard"]  # straight-through
    for layer in found["layers"].values():
        channels = layer["shape"][-1]
        assert layer["bits"] == 1 and layer["values"] == [2, 2]
        assert layer["floats"] == [2, channels]
    shapes = [layer["shape"] for layer in found["layers"].values()]
    assert gap_page.packed_bytes(found["layers"]) == sum(
        np.prod(s) // 8 + 4 * (2 + s[-1]) for s in shapes
    )


# The page -----------------------------------------------------------------------------
def test_best_rate_is_the_lower_one_of_two_and_needs_the_whole_search(made):
    made("search", "quantnet", [result(x) for x in (0.5, 0.7, 0.7, 0.6)])
    assert gap_page.best_rate(made.folder, "quantnet") == gap_rows.RATES[1]
    made("search", "dorefa", [result(0.1), DIVERGED, result(0.2), DIVERGED])
    assert gap_page.best_rate(made.folder, "dorefa") == gap_rows.RATES[2]
    made("search", "lsq", [DIVERGED] * 4)
    assert gap_page.best_rate(made.folder, "lsq") == gap_rows.RATES[0]
    gap_page.search_paths(made.folder, "quantnet")[1.0].unlink()
    assert gap_page.best_rate(made.folder, "quantnet") is None


def test_packed_bytes_by_hand():
    # a: 90 codes of 1 bit in 12 bytes; b: 5 codes of 2 bits in 2; 7 and 5 floats.
    assert gap_page.packed_bytes(LAYERS) == 12 + 4 * 7 + 2 + 4 * 5 == 62
    assert gap_page.float_bytes(LAYERS) == 4 * 95


def test_distinct_codes_are_counted_per_tensor_and_channel():
    codes = np.zeros((3, 3, 2, 3), np.uint8)
    codes[..., 1] = np.arange(18).reshape(3, 3, 2) % 3
    codes[..., 2] = 255
    assert gap._distinct(codes) == [4, 3]
    assert gap._distinct(codes[..., :1]) == [1, 1]


def cells(text, start):
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {start} |")][:1]
    return [x.strip() for x in line.split("|")[1:-1]]


def test_page_without_results(made):
    text = gap_page.page("bundled", made.folder)
    count = len(gap_rows.rows())
    assert text.count("not run") >= count * (2 + len(gap_rows.RATES))
    assert "**Float network (`identity`): not run**" in text


def test_page(made):
    made("search", "quantnet", [result(x) for x in (0.5, 0.7, 0.6, 0.6)])
    made("final", "quantnet", [result(x) for x in (0.80, 0.82, 0.84)])
    made("search", "identity", [*[result(0.5)] * 3, result(0.6)])
    made("final", "identity", [result(x, layers={}) for x in (0.91, 0.92, 0.93)])
    made("final", "binary_ste", [result(0.5), DIVERGED, result(0.6)])
    made("final", "tanh_sign", [DIVERGED] * 3)
    put(
        made.folder / "step_time.json",
        {"methods": {"quantnet": {"over_float_paired": 1.234}}},
    )
    text = gap_page.page("bundled", made.folder)
    assert "**Float network (`identity`): 91.00 ± 1.00**" in text
    wanted = ["quantnet", "1/32", "0.1", "84.00 ± 2.00", "81.00 ± 2.00"]
    wanted += ["82.00 ± 2.00", "3.00 ± 0.00", "2.00 ± 0.00", "4 / 3", "62", "6.1"]
    assert cells(text, "quantnet") == [*wanted, "1.23"]
    assert cells(text, "identity")[:3] == ["identity", "32/32", "1.0 (edge)"]
    assert cells(text, "identity")[8] == "float"
    row = cells(text, "binary_ste")
    assert row[3].endswith("(1 of 3 diverged)") and row[5] == "55.00 ± 7.07"
    assert cells(text, "tanh_sign")[3] == "diverged (3 of 3)"
    search = text.split("## Search")[1]
    assert cells(search, "quantnet")[1:] == ["50.00", "70.00", "60.00", "60.00"]
    assert "Best at the highest rate, 1.0: identity." in text
    assert "Best at the lowest rate, 0.03: none." in text
    widths = {len(x.split(" | ")) for x in text.split("## Search")[0].splitlines()
              if x.startswith("| ")}  # fmt: skip
    assert widths == {len(gap_page.COLUMNS)}


def test_table_command_writes_the_page(made):
    assert gap_table.main(["table"]) == 0
    wanted = gap_page.page("bundled", made.folder)
    assert (made.folder / "README.md").read_text() == wanted
