"""Tests of the report: content, missing parts, escaping, and a real browser."""

import base64
import html.parser
import json
import os
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from quantnet_jax import report
from quantnet_jax.report.__main__ import main

METRIC = {"name": "accuracy", "unit": "%", "higher_is_better": True}
EVIL = "<script>document.documentElement.dataset.evil='1'</script>"


def make_run(folder, *, method="quantnet", seed=0, hard=0.9, finished=True, **parts):
    """Writes the files of a synthetic run: three evaluations of two layers."""
    os.makedirs(folder)
    config = {
        "data": {"name": "fashion_mnist"},
        "model": {"name": "resnet8"},
        "quantizer": {"name": method},
        "seed": seed,
    }
    lines, layers = [], {}
    for step in range(1, 31):
        train = {"step": step, "kind": "train", "epoch": step / 10, "loss": 3 / step}
        lines.append(train)
        if step % 10 == 0:
            score = hard - 0.1 * (30 - step) / 10
            lines.append(
                {"step": step, "kind": "eval", "epoch": step / 10, "soft": score + 0.02,
                 "hard": score, "hard_bn": score + 0.01, "flips": 0.1,
                 "sharpness": step, "metric": METRIC}
            )  # fmt: skip
            for name in ("block0/conv1/kernel", "head/kernel"):
                layers[name] = {
                    "shape": [3, 3, 4, 8], "bits": 1, "distance": 0.125,
                    "undecided": 0.25, "flips": 0.05,
                    "histogram": {
                        "edges": [-1 + i / 32 for i in range(65)],
                        "counts": [step] * 32 + [0] * 31 + [68 * step],
                    },
                }  # fmt: skip
            lines.append({"step": step, "kind": "layers", "layers": dict(layers)})
    lines = [x for x in lines if x["kind"] not in parts.get("without", ())]
    (folder / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + parts.get("tail", ""))
    if finished:
        result = {
            "method": method, "seed": seed, "steps": 30, "seconds": 61.0,
            "soft": hard + 0.02, "hard": hard, "hard_bn": hard + 0.01,
            "examples": 2000, "versions": {"jax": "0.10.2"}, "device": "cpu",
            "commit": "0123456789abcdef", "layers": layers,
            "metric": METRIC,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result | parts.get("more", {})))
    return folder


class Page(html.parser.HTMLParser):
    """Collects tags, attributes, tables and visible text; checks the nesting."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.tables, self.headings = [], []
        self.feed(pathlib.Path(path).read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text.append(data)
        if "table" in self.open:
            self.tables[-1][-1][-1] += data

    def words(self):
        return " ".join(" ".join(self.text).split())

    def plots(self):
        """Returns {chart title: {series name: points}}."""
        out = {}
        for tag, attrs in self.tags:
            if tag == "svg" and "data-plot" in attrs:
                plot = json.loads(attrs["data-plot"])
                curves = {s["name"]: s["points"] for s in plot["series"]}
                out[attrs["aria-label"]] = curves
        return out


def write(folders, tmp_path):
    return Page(report.write_report(folders, tmp_path / "page.html"))


def test_one_run_shows_its_numbers(tmp_path):
    folder = make_run(tmp_path / "run-a", more={"float": 0.95})
    path = report.write_report([folder])
    assert path == str(folder / "report.html")
    assert not os.path.exists(path + ".tmp")
    page = Page(path)
    words = page.words()
    for text in (
        "run-a", "quantnet", "fashion_mnist", "resnet8", "0123456789", "0.10.2",
        "Float 95.00 %", "Soft 92.00 %", "Hard 90.00 %", "Hard + BN 91.00 %",
        "Gap soft − hard +2.00 pt", "Float − hard +5.00 pt", "2000 test examples",
        "finished, 30 steps",
    ):  # fmt: skip
        assert text in words, text
    plots = page.plots()
    accuracy = plots["Test accuracy, %"]
    assert set(accuracy) == {"Soft", "Hard", "Hard + BN"}
    assert accuracy["Hard"] == [[1, 70], [2, 80], [3, 90]]
    assert plots["Gap: soft − hard, pt"]["run-a"] == [[1, 2], [2, 2], [3, 2]]
    assert len(plots["Train loss"]["run-a"]) == 30
    assert plots["Sharpness"]["run-a"] == [[1, 10], [2, 20], [3, 30]]
    (table,) = page.tables
    assert table[1] == [
        "block0/conv1/kernel",
        "3×3×4×8",
        "1",
        "0.125",
        "25.0 %",
        "5.0 %",
    ]
    assert len(table) == 3


@pytest.mark.parametrize(
    ("metric", "gap", "shown"),
    [
        (
            {"name": "psnr", "unit": " dB", "higher_is_better": True},
            0.5,
            ["Float 31.00 dB", "Hard 29.75 dB", "Gap soft − hard +0.50 dB",
             "Float − hard +1.25 dB", "Test psnr, dB", "Gap: soft − hard, dB"],
        ),
        (
            {"name": "error", "unit": "%", "higher_is_better": False},
            None,
            ["Hard 2975.00 %", "Gap hard − soft −50.00 pt", "Hard − float −125.00 pt",
             "Test error, %", "Gap: hard − soft, pt"],
        ),
        (
            None,  # recorded before runs named their metric
            None,
            ["Float 31", "Hard 29.75", "Gap soft − hard +0.5", "Test score"],
        ),
    ],
)  # fmt: skip
def test_scores_have_the_unit_of_the_metric(tmp_path, metric, gap, shown):
    more = {"float": 31.0, "soft": 30.25, "hard": 29.75, "metric": metric, "gap": gap}
    folders = [make_run(tmp_path / name, more=more) for name in ("a", "b")]
    for lines in (folder / "metrics.jsonl" for folder in folders):
        new = json.dumps(metric)
        lines.write_text(lines.read_text().replace(json.dumps(METRIC), new))
    page = write(folders[:1], tmp_path)
    for text in shown:
        assert text in page.words(), text
    assert metric or "%" not in page.words().split("Layers")[0].split("flipped")[0]
    words = write(folders, tmp_path).words()
    name = metric["name"] if metric else "score"
    assert f"Hard {name}" in words and ("29.75 dB" in words) == ("psnr" in words)
    mixed = write([folders[0], make_run(tmp_path / "c")], tmp_path)
    first = [row[0] for row in mixed.tables[0][1:]]
    labels = [f"quantnet · metric {x}" for x in (metric and metric["name"], "accuracy")]
    assert first == [x.replace("None", "") for x in labels]
    assert "90.00 %" in mixed.words()


def test_the_page_loads_nothing(tmp_path):
    path = report.write_report([make_run(tmp_path / "run")])
    for tag, attrs in Page(path).tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "action"):
            assert attrs.get(name, "data:").startswith("data:")
    text = pathlib.Path(path).read_text(encoding="utf-8")
    urls = set(re.findall(r"https?://[^'\"\s]+", text))
    assert urls == {"http://www.w3.org/2000/svg"}  # the SVG name space
    assert "default-src &#x27;none&#x27;" in text


def test_histograms_over_time_hold_the_shares(tmp_path):
    page = write([make_run(tmp_path / "run")], tmp_path)
    maps = [json.loads(a["data-map"]) for _, a in page.tags if "data-map" in a]
    assert len(maps) == 2
    assert maps[0]["times"] == [1, 2, 3] and maps[0]["xlabel"] == "epoch"
    assert (maps[0]["low"], maps[0]["high"]) == (-1, 1)
    # 32 bins hold 1 % each, the last one 68 %, in hundredths of a percent.
    assert maps[0]["shares"] == [[100] * 32 + [0] * 31 + [6800]] * 3


def test_several_runs_are_compared_with_mean_and_deviation(tmp_path):
    hard = {"quantnet": [0.9, 0.91, 0.935], "binary_ste": [0.85, 0.86]}
    folders = [
        make_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, hard=value)
        for method, values in hard.items()
        for seed, value in enumerate(values)
    ]
    going = make_run(tmp_path / "going", seed=9, hard=0.2, finished=False)
    page = write([*folders, going], tmp_path)
    means, runs = page.tables[:2]
    rows = {row[0]: dict(zip(means[0], row, strict=True)) for row in means[1:]}
    assert set(rows) == set(hard)
    for method, values in hard.items():
        mean, spread = statistics.mean(values), statistics.stdev(values)
        assert rows[method]["runs"] == str(len(values))
        assert rows[method]["Hard"] == f"{100 * mean:.2f} ± {100 * spread:.2f}"
        assert rows[method]["Gap"] == "2.00 ± 0.00"
    assert len(runs) == 7 and runs[-1][-1] == "in progress, step 30"
    curves = page.plots()["Hard accuracy, %"]
    assert len(curves) == 6 and curves["going"][-1] == [3, 20]
    buttons = [a["data-key"] for tag, a in page.tags if tag == "button"]
    assert len(buttons) == len(set(buttons)) == 6


def test_runs_of_other_data_are_not_averaged(tmp_path):
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", more={"data": "cifar10"})
    labels = [
        g.caption for g in report.group_runs([report.load_run(f) for f in (a, b)])
    ]
    assert labels == ["quantnet · data fashion_mnist", "quantnet · data cifar10"]


def pixels(array):
    array = np.asarray(array, np.uint8)
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape), "data": data}


def read_png(url):
    """(kind of its colours, rows of bytes) of a PNG without filters."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    wide, high, depth, kind = struct.unpack(">IIBB", data[16:26])
    body = data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(high, -1)
    assert depth == 8 and not rows[:, 0].any()
    return kind, rows[:, 1:].reshape(high, wide, -1)


EXHIBITS = {
    "size": {
        "payload": 14400,
        "compression": 21.0,
        "macs": {"1/32": 3e6, "32/32": 1e6},
    },
    "kernels": {
        "head/kernel": {"before": pixels([[0, 127]]), "after": pixels([[0, 254]])}
    },
    "panels": {
        "matrix": {"title": "x", "names": ["a", "b"], "counts": [[7, 1], [0, 2]]},
        "samples": [
            {"title": "a", "text": "b, 90 %", "good": False, "image": pixels([[[9]]])},
            {"title": "b", "text": "b, 80 %", "good": True,
             "image": pixels([[[1, 2, 3], [4, 5, 6]]])},
        ],
    },
}  # fmt: skip


def test_exhibits_of_a_finished_run(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "exhibits.json").write_text(json.dumps(EXHIBITS))
    page = write([folder], tmp_path)
    words = page.words()
    for text in ("14.4 kB", "21.0 ×", "MACs, 75% 1/32 bit 4.00 M", "✗ b, 90 %"):
        assert text in words, text
    assert page.tables[0] == [["", "a", "b"], ["a", "7", "1"], ["b", "0", "2"]]
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    images = [read_png(src) for src in sources]
    assert [(k, x.shape) for k, x in images[:2]] == [(0, (1, 1, 1)), (2, (1, 2, 3))]
    assert images[1][1].ravel().tolist() == [1, 2, 3, 4, 5, 6]
    kind, kernel = images[-1]
    assert kind == 3 and kernel.ravel().tolist() == [0, 254]


@pytest.mark.parametrize("part", ["size", "kernels", "panels"])
@pytest.mark.parametrize("value", [None, 1, [], "x", {"matrix": 1, "samples": [1]}])
def test_damaged_exhibits_leave_a_page(tmp_path, part, value):
    folder = make_run(tmp_path / "run")
    (folder / "exhibits.json").write_text(json.dumps(EXHIBITS | {part: value}))
    assert "Hard 90.00 %" in write([folder], tmp_path).words()


def test_many_classes_are_an_image(tmp_path):
    names = [f"c{i}" for i in range(30)]
    matrix = {"names": names, "counts": np.eye(30).tolist()}
    folder = make_run(tmp_path / "run")
    (folder / "exhibits.json").write_text(json.dumps({"panels": {"matrix": matrix}}))
    page = write([folder], tmp_path)
    (source,) = [a["src"] for t, a in page.tags if t == "img" and "class" in a]
    assert (read_png(source)[1][..., 0] == 255 * np.eye(30)).all()


def test_charts_share_their_axis_and_explain_their_terms(tmp_path):
    page = write([make_run(tmp_path / "run")], tmp_path)
    plots = [json.loads(a["data-plot"]) for t, a in page.tags if "data-plot" in a]
    assert len(plots) > 3 and {(p["x0"], p["x1"]) for p in plots} == {(0.1, 3)}
    told = {a["title"] for tag, a in page.tags if tag == "abbr"}
    assert any("recalibrated" in text for text in told)
    words = page.words()
    assert all(text in words for text in told)  # in the list, too


def test_training_curves_are_shown_where_recorded(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    more = {
        "lr": 0.1,
        "grad_norm": 2.0,
        "penalty": 0.0,
        "step_time": 0.5,
        "accuracy": 0.25,
    }
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    lines = [x | more if x["kind"] == "train" else x for x in lines]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    plots = write([folder], tmp_path).plots()
    assert plots["Train accuracy, %"]["run"][-1] == [3, 25]
    assert plots["Step time, ms"]["run"][-1] == [3, 500]
    assert {"Learning rate", "Gradient norm"} <= set(plots) and "Penalty" not in plots


def test_what_differs_between_configurations(tmp_path):
    folders = [make_run(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    tables = write(folders, tmp_path).tables
    assert [["key", "a", "b"], ["seed", "0", "1"]] in tables


@pytest.mark.parametrize(
    "without", [("eval",), ("layers",), ("train",), ("train", "eval", "layers")]
)
@pytest.mark.parametrize("count", [1, 2])
def test_missing_parts_leave_a_page(tmp_path, without, count):
    folders = [
        make_run(tmp_path / str(i), without=without, finished=False, tail='{"step": 31')
        for i in range(count)
    ]
    os.remove(folders[0] / "config.json")
    words = write(folders, tmp_path).words()
    assert "in progress" in words
    assert ("No layer has been recorded" in words) == ("layers" in without)
    if len(without) == 3:
        assert "No evaluation has been recorded" in words


def test_null_scores_break_the_curve_but_not_the_page(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for line in (
            '{"step":40,"kind":"eval","epoch":4,"soft":null,"hard":NaN,"flips":null}',
            '{"step":40,"kind":"layers","layers":{"head/kernel":{"distance":null}}}',
            '{"step":40,"kind":"unheard-of"}',
            "[1]",
        ):
            file.write(line + "\n")
    page = write([folder], tmp_path)
    assert page.plots()["Test accuracy, %"]["Hard"][-1] == [4, None]
    assert page.tables[0][1] == ["head/kernel", "–", "–", "–", "–", "–"]


def test_long_curves_are_averaged_down(tmp_path):
    folder = make_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, 6001):
            record = {"step": step, "kind": "train", "epoch": step, "loss": step % 2}
            file.write(json.dumps(record) + "\n")
    points = write([folder], tmp_path).plots()["Train loss"]["run"]
    assert len(points) == 300 and {y for _, y in points} == {0.5}


def evil_runs(tmp_path):
    first = make_run(tmp_path / "x<img src=x onerror=alert(1)>", method=EVIL)
    config = json.loads((first / "config.json").read_text())
    config["model"]["name"] = "'\"><svg onload=alert(2)>" + EVIL
    (first / "config.json").write_text(json.dumps(config))
    text = (first / "metrics.jsonl").read_text()
    (first / "metrics.jsonl").write_text(text.replace("head/kernel", EVIL))
    return [first, make_run(tmp_path / "plain")]


@pytest.mark.parametrize("count", [1, 2])
def test_names_from_files_stay_text(tmp_path, count):
    page = write(evil_runs(tmp_path)[:count], tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert EVIL in page.words()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p / "absent", "absent' is not a folder"),
        (lambda p: p, "has no metrics.jsonl; give the --workdir"),
    ],
)
def test_bad_folders_are_one_line_and_exit_code_1(tmp_path, capsys, prepare, message):
    assert main(["--workdir", str(prepare(tmp_path))]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_result_is_named(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "result.json").write_text("{")
    assert main(["--workdir", str(folder)]) == 1
    assert "result.json' is not JSON" in capsys.readouterr().err
    assert not (folder / "report.html").exists()
    with pytest.raises(ValueError, match="workdirs is empty"):
        report.write_report([])


def test_command_line(tmp_path):
    folders = [str(make_run(tmp_path / n)) for n in ("a", "b")]
    out = str(tmp_path / "both.html")
    command = [sys.executable, "-m", "quantnet_jax.report"]
    arguments = ["--workdir", *folders, "--out", out]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, out), done.stderr
    assert "2 runs" in Page(out).words()


# A probe put into a copy of the page reports what the real browser did with it.
PROBE = """
addEventListener('error', e => { document.documentElement.dataset.error = e.message; });
addEventListener('load', () => {
  const root = document.documentElement, tip = document.getElementById('tip');
  const move = element => {
    const box = element.getBoundingClientRect(), middle = box.top + box.height / 2;
    const at = { clientX: box.left + box.width * 0.5, clientY: middle, bubbles: true };
    element.dispatchEvent(new PointerEvent('pointermove', at));
    return tip.textContent;
  };
  root.dataset.chart = move(document.querySelector('.chart'));
  root.dataset.map = move(document.querySelector('.map'));
  const button = document.querySelector('.legend button');
  button.click();
  const line = document.querySelector(`.s[data-key="${button.dataset.key}"]`);
  root.dataset.line = getComputedStyle(line).display;
  root.dataset.wide = root.scrollWidth > innerWidth;
});
"""


def test_a_real_browser_runs_the_page(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser found (looked for {', '.join(names)})")
    path = report.write_report(evil_runs(tmp_path), tmp_path / "page.html")
    page = pathlib.Path(path).read_text(encoding="utf-8")
    meta = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)
    # Without the policy: the escaping must hold by itself.
    probed = page.replace(meta.group(), "").replace(
        "<style>", f"<script>{PROBE}</script><style>", 1
    )
    roots = []
    for number, text in enumerate((page, probed)):
        file = tmp_path / f"{number}.html"
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update",
             "--disable-sync", f"--user-data-dir={tmp_path / f'profile{number}'}",
             "--window-size=500,900", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        dom = done.stdout
        assert dom, done.stderr[-500:]
        roots.append(
            dict(re.findall(r'data-(\w+)="([^"]*)"', dom[: dom.index("<head")]))
        )
    assert roots[0] == {"ready": "1"}
    assert roots[1]["ready"] == "1"
    assert "error" not in roots[1] and "evil" not in roots[1]
    assert "epoch" in roots[1]["chart"] and "plain" in roots[1]["chart"]
    assert "% of the weights" in roots[1]["map"]
    assert roots[1]["line"] == "none"
    assert roots[1]["wide"] == "false"
