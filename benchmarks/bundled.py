"""Chooses and measures the default configuration on the bundled images.

    python benchmarks/bundled.py run [--jobs=2]    # resumable; most valuable runs first
    python benchmarks/bundled.py table             # writes the tables, README.md too

Every run is one `train.py` command in a process of its own, and leaves one JSON under
results/bundled/. Learning rates and options are chosen on 2,000 held-out training
images ('search', 'ablation'; one seed); the choice is then trained on all 10,000 and
scored on the test images with three seeds ('final').
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "bundled"
README = ROOT / "README.md"
BEGIN, END = (
    "<!-- results: written by benchmarks/bundled.py -->",
    "<!-- end of results -->",
)
METHODS = ("identity", "binary_ste", "tanh_sign", "quantnet")
RATES = (0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2)
KINDS = ("soft", "hard", "hard_bn")

# One factor at a time, at the learning rate that the search found for quantnet.
Q = "quantizer.quantnet."
ABLATION = {
    "default": {},
    "unit=weight, width=16": {Q + "unit": "weight", Q + "width": 16},
    "unit=filter": {Q + "unit": "filter", "share": "shape"},
    "unit=conv": {Q + "unit": "conv", Q + "width": 2, "share": "shape"},
    "skip=no": {Q + "skip": False},
    "penalty=0.1": {Q + "penalty.end": 0.1},
    "penalty=0.5": {Q + "penalty.end": 0.5},
    "sharpness to 5": {Q + "sharpness.end": 5.0},
    "sharpness to 20": {Q + "sharpness.end": 20.0},
    "sharpness from 1": {Q + "sharpness.start": 1.0},
    "meta rate=1e-3": {"meta.learning_rate": 1e-3},
    "meta rate=3e-3": {"meta.learning_rate": 3e-3},
}
# The annealed baseline gets the same search over its schedule.
T = "quantizer.tanh_sign."
BASELINE = {
    "tanh_sign: penalty=0.1": {T + "penalty.end": 0.1},
    "tanh_sign: sharpness to 5": {T + "sharpness.end": 5.0},
    "tanh_sign: sharpness to 20": {T + "sharpness.end": 20.0},
    "tanh_sign: sharpness from 1": {T + "sharpness.start": 1.0},
}
INTRO = """\
Bundled images (10,000 + 2,000 of Fashion-MNIST), ResNet-8 of width 16, 20 epochs on
2 CPU cores; all layers but the first and the last binary. Test accuracy in percent
after the last epoch, mean and standard deviation of seeds 0, 1, 2, each method at its
own best learning rate, found on held-out training images. How the configuration was
chosen, and all runs: [results/bundled](results/bundled).
"""
CAUTION = """
These images show that everything works, not which method is best: the standard error
of an accuracy on 2,000 images is 0.7 points, and the binary methods are within it of
each other."""
HELD_OUT = {"data.validation_size": 2000, "eval_every": 10.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    if args.action == "run":
        run_all(args.jobs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "README.md").write_text(table())
    README.write_text(with_results(README.read_text()))
    print(f"wrote {RESULTS / 'README.md'} and the results in {README}")


def run_all(jobs: int):
    """Search, then the final runs, then what the default's options are worth."""
    search = [
        (f"search/{method}-lr{rate}", method, {"weights.learning_rate": rate})
        for rate in RATES
        for method in METHODS
    ]
    run_many([(n, m, o | HELD_OUT) for n, m, o in search], jobs)
    final = [
        (f"final/{method}-seed{seed}", method, best_rate(method) | {"seed": seed})
        for seed in SEEDS
        for method in METHODS
    ]
    run_many(final, jobs)
    rows = [
        (f"ablation/{slug(name)}", method, best_rate(method) | change | HELD_OUT)
        for group, method in ((ABLATION, "quantnet"), (BASELINE, "tanh_sign"))
        for name, change in group.items()
    ]
    run_many(rows, jobs)


def run_many(rows, jobs: int):
    """Runs what has no result yet, `jobs` at a time, each on its own cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[i::jobs] or cores for i in range(jobs)]
    free, lock = list(range(jobs)), threading.Lock()

    def one(row):
        with lock:
            slot = free.pop()
        try:
            run_one(*row, shares[slot])
        finally:
            with lock:
                free.append(slot)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, rows))


def run_one(name: str, method: str, overrides: dict, cores: list[int]):
    """One training run; its result and curve go to RESULTS/name.json."""
    out = RESULTS / f"{name}.json"
    if out.exists():
        return
    options = {"quantizer.name": method}
    options |= dict.fromkeys(("report", "tensorboard", "export"), False) | overrides
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}"]
        done = subprocess.run(
            command + flags,
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout}\n{done.stderr}")
        result = json.loads((pathlib.Path(workdir) / "result.json").read_text())
        lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for layer in result["layers"].values():
        layer.pop("histogram", None)
    result |= {
        "command": " ".join(["python", "train.py", *flags]),
        "overrides": options,
        "curve": [r for r in records if r["kind"] == "eval"],
        "cores": len(cores),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    shutil.move(partial, out)
    print(
        f"{name}: soft {result['soft']:.4f} hard {result['hard']:.4f} "
        f"hard+BN {result['hard_bn']:.4f} ({result['seconds']:.0f} s)",
        flush=True,
    )


def best_rate(method: str) -> dict:
    """The rate with the best held-out hard + BN accuracy (the lower one of two)."""
    scores = {rate: read(f"search/{method}-lr{rate}")["hard_bn"] for rate in RATES}
    return {"weights.learning_rate": max(scores, key=lambda r: (scores[r], -r))}


def read(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def slug(name: str) -> str:
    return name.replace(" ", "_").replace(":", "").replace(",", "").replace("=", "-")


def table() -> str:
    """The Markdown page of all results there are."""
    show = lambda r, k: "not run" if r is None else f"{100 * r[k]:.2f}"
    head = "# Default configuration on the bundled images\n"
    text = [head, (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    text += ["ResNet-8 of width 16, stem stride 2, 20 epochs, batch 64, all layers but"]
    text += [
        "stem and head binary; accuracy in percent after the last epoch. One standard"
    ]
    text += ["error of an accuracy on 2,000 images is 0.7 points.\n"]
    text += ["## Learning rate (held-out images, seed 0, hard + BN)\n"]
    text += ["| method | " + " | ".join(map(str, RATES)) + " |"]
    text += ["|---" * (len(RATES) + 1) + "|"]
    for method in METHODS:
        cells = [show(read(f"search/{method}-lr{rate}"), "hard_bn") for rate in RATES]
        text += [f"| {method} | " + " | ".join(cells) + " |"]
    text += ["\n## One factor at a time (held-out images, seed 0)\n"]
    text += ["| change | soft | hard | hard + BN |", "|---|---|---|---|"]
    for name in [*ABLATION, *BASELINE]:
        r = read(f"ablation/{slug(name)}")
        cells = " | ".join(show(r, k) for k in KINDS)
        text += [f"| {name} | {cells} |"]
    text += ["\n## Final (test images, seeds 0, 1, 2: mean and standard deviation)\n"]
    return "\n".join(text + final_table()) + "\n"


def final_table() -> list[str]:
    """Lines of the table of the final runs."""
    text = ["| method | learning rate | soft | hard | hard + BN | soft - hard+BN |"]
    text += ["|---|---|---|---|---|---|"]
    for method in METHODS:
        runs = [read(f"final/{method}-seed{seed}") for seed in SEEDS]
        if None in runs:
            text += [f"| {method} | not run | | | | |"]
            continue
        rate = runs[0]["overrides"]["weights.learning_rate"]
        cells = [mean_std([100 * r[k] for r in runs]) for k in KINDS]
        gap = mean_std([100 * r["gap_bn"] for r in runs])
        text += [f"| {method} | {rate} | " + " | ".join([*cells, gap]) + " |"]
    return text


def with_results(readme: str) -> str:
    """README.md with its block of results made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    text = [INTRO, *final_table(), CAUTION]
    return before + "\n".join([BEGIN, *text, END]) + after


def mean_std(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
