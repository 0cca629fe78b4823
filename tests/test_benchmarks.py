"""The benchmarks' programs on tiny settings and made-up results, not their numbers."""

import json
import pathlib

import pytest

from benchmarks import bundled, cost, cost_page, performance, step_time

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.cheap


def test_step_time_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "results" / "step_time.json"
    options = "--model=small --batch=8 --image-size=8 --repeats=3 --methods quantnet"
    assert step_time.main([*options.split(), f"--out={out}"]) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(result["methods"]) == ["identity", "quantnet"]
    for name, row in result["methods"].items():
        assert 0 < row["fastest"] <= row["median"] <= row["slowest"]
        reference = result["methods"]["identity"]["median"]
        assert row["over_float"] == pytest.approx(row["median"] / reference)
        assert f"{1e3 * row['median']:.1f}" in printed and name in printed
    assert result["methods"]["identity"]["over_float_paired"] == 1.0
    assert {"versions", "device", "commit", "cores", "load"} <= result.keys()
    assert result["command"].startswith("python benchmarks/step_time.py --model=small")
    assert list(out.parent.iterdir()) == [out]  # written whole, nothing left behind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices=99"], "--devices=99"),
        (["--methods", "bread"], "nothing to compare"),
        (["--methods", "identity"], "expected some of quantnet"),
        (["--repeats=0"], "--repeats=0"),
        (["--model=bread"], "model.name='bread'"),
        (["--batch=0"], "batch_size=0"),
    ],
)
def test_step_time_refuses_what_matches_nothing(tmp_path, capsys, options, message):
    out = tmp_path / "no.json"
    assert step_time.main([*options, f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()


def test_step_times_differ_in_the_method_alone():
    args = type("Args", (), {"batch": 8, "model": "small", "image_size": 8})
    a, b = (step_time.settings(m, args).to_dict() for m in ("identity", "quantnet"))
    assert a["quantizer"].pop("name") != b["quantizer"].pop("name")
    assert a == b


@pytest.fixture
def results(tmp_path, monkeypatch):
    """`save(name, hard, **more)` writes a made-up result file."""
    monkeypatch.setattr(bundled, "RESULTS", tmp_path)

    def save(name, hard, **more):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = {"soft": hard, "hard": hard, "hard_bn": hard, "gap_bn": 0.0}
        path.write_text(json.dumps(scores | more))

    return save


def rates(save, method, scores):
    for rate, score in zip(bundled.RATES, scores, strict=True):
        save(f"search/{method}-lr{rate}", score)


def test_best_rate_is_the_lower_one_of_two(results):
    count = len(bundled.RATES)
    rates(results, "quantnet", [0.5, 0.7, 0.7, *[0.6] * (count - 3)])
    assert bundled.best_rate("quantnet") == {"weights.learning_rate": bundled.RATES[1]}
    rates(results, "identity", [*[0.1] * (count - 1), 0.2])
    assert bundled.best_rate("identity") == {"weights.learning_rate": bundled.RATES[-1]}


def test_table_says_what_was_not_run(results):
    assert bundled.table().count("not run") > len(bundled.ABLATION)
    rates(results, "quantnet", [0.1234] * len(bundled.RATES))
    changed = list(bundled.ABLATION)[1]
    results(f"ablation/{bundled.slug(changed)}", 0.4321)
    text = bundled.table()
    assert "| quantnet |" + " 12.34 |" * len(bundled.RATES) in text
    assert f"| {changed} | 43.21 | 43.21 | 43.21 |" in text


def test_final_table_is_mean_and_deviation(results):
    for seed, hard in zip(bundled.SEEDS, (0.80, 0.82, 0.84), strict=True):
        chosen = {"weights.learning_rate": 0.3}
        results(f"final/quantnet-seed{seed}", hard, overrides=chosen, gap_bn=0.01)
    text = bundled.table()
    wanted = "| quantnet | 0.3 |" + " 82.00 ± 2.00 |" * 3 + " 1.00 ± 0.00 |"
    assert wanted in text
    assert "| identity | not run" in text


def test_names_of_results_are_distinct():
    names = [bundled.slug(name) for name in (*bundled.ABLATION, *bundled.BASELINE)]
    assert len(set(names)) == len(names)
    assert not [name for name in names if set(name) & set(" :=/")]


def test_page_of_costs_is_up_to_date():
    written = (ROOT / "docs" / "performance.md").read_text()
    assert written == cost_page.page(ROOT / "results")


def test_floor_of_memory_counts_what_convolutions_read_and_write():
    # ResNet-8: the stem, two 3x3 convolutions at each of three sizes, and the head.
    outputs = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8 + cost.CLASSES
    assert cost.floor_bytes("resnet8", 32, batch=2) == 2 * outputs * 8 * 2


# The measurement on an accelerator ----------------------------------------------------
HLO = """HloModule jit_f, entry_computation_layout={()->f32[]}

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %s = f32[2]{0} sine(%p)
}

%command_buffer (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %k1 = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %k2 = (f32[2]{0}, s8[4]{0}) custom-call(%k1), custom_call_target="__cublas$gemm"
}

%body (t: (s32[], f32[2])) -> (s32[], f32[2]) {
  %t = (s32[], f32[2]{0}) parameter(0)
  %x = f32[2]{0} get-tuple-element(%t), index=1
  %y = f32[2]{0} call(%x), to_apply=%command_buffer
  %z = f32[2]{0} fusion(%y), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[2]{0}) tuple(%z, %z)
}

%cond (t.1: (s32[], f32[2])) -> pred[] {
  %t.1 = (s32[], f32[2]{0}) parameter(0)
  ROOT %c = pred[] constant(false)
}

ENTRY %main (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  %w = (s32[], f32[2]{0}) while(%q), condition=%cond, body=%body
  ROOT %o = f32[2]{0} copy(%q)
}
"""


def test_launches_are_those_of_the_loop_over_steps():
    assert performance.launches(HLO) == 3
    alone = HLO.replace("%w = (s32[], f32[2]{0}) while", "%w = f32[2]{0} sort")
    assert performance.launches(alone) == 2  # the sort and the copy


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A results folder with what an accelerator would leave, of tiny programs."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("cost.json", "step_time.json"):
        (folder / name).write_text((ROOT / "results" / name).read_text())
    row = performance.timed_row("small", 8, 8, 8, chunk=2, rounds=2)
    rows = [row | {"model": "resnet20", "pixels": 32, "width": 64, "batch": 512}]
    about = {"command": "python x.py", "device": "1 x abacus", "run": {"quantnet": 0.4}}
    (folder / cost_page.MEASURED).write_text(json.dumps({"rows": rows, **about}))
    return folder, row


def test_a_point_is_timed_and_weighed(measured):
    _, row = measured
    for method in performance.METHODS:
        found = row[method]
        assert found["seconds"] > 0 and found["launches"] > 50
        assert found["memory"] > 10_000
    assert row["quantnet"]["launches"] > row["identity"]["launches"]
    assert row["quantnet"]["memory"] > row["identity"]["memory"]
    assert row["over_float"] > 0


def test_page_of_an_accelerator(measured):
    folder, row = measured
    text = cost_page.page(folder)
    assert "200 epochs of QuantNet, batch 128, with 20 evaluations" in text
    goal = [line.split("|")[3].strip() for line in text.splitlines() if "| 1." in line]
    assert goal[0] == f"{row['over_float']:.3f}"
    assert goal[1] == f"{row['quantnet']['memory'] / row['identity']['memory']:.3f}"
    assert "| 90 | 80 |" in text and "1 x abacus" in text and "quantnet 80 s" in text
    # The larger one of 115.1 GFLOP / 989 TFLOP/s and 1.54 GB / 4.8 TB/s.
    assert "| 0.322 |" in text


def test_page_says_what_was_not_run():
    written = (ROOT / "docs" / "performance.md").read_text()
    if not (ROOT / "results" / cost_page.MEASURED).exists():
        assert "| 90 | not run |" in written and "| 1.05 | not run |" in written


def test_time_of_an_epoch_is_without_what_each_run_does_once(monkeypatch):
    clock = [0.0]
    lengths = []

    def train(config, workdir):
        lengths.append((config.epochs, config.quantizer.name, config.dtype))
        clock[0] += 100.0 + 0.25 * config.epochs

    monkeypatch.setattr(performance.train, "train", train)
    monkeypatch.setattr(performance.time, "perf_counter", lambda: clock[0])
    assert performance.run_seconds("quantnet") == pytest.approx(0.25)
    assert lengths == [(10.0, "quantnet", "bfloat16"), (30.0, "quantnet", "bfloat16")]


def test_a_cpu_is_no_accelerator(capsys):
    assert performance.main([]) == 2
    assert "--compile" in capsys.readouterr().err
