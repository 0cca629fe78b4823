"""Measures training on this machine's accelerator, and writes docs/performance.md.

    python benchmarks/performance.py             # all of it, on one GPU or TPU chip
    python benchmarks/performance.py --compile   # programs alone, on any machine

Each point of the grid of benchmarks/cost.py trains random images in memory as
`train.py` does there: the network in bfloat16, a chunk of steps for each dispatch, no
compilation in the times. Float and QuantNet take turns, and the numbers are medians
over the rounds. Memory and operations are those of the compiled programs. The time of a
long run is the difference of two short ones of different lengths, evaluations included,
so that what each run does once is not in it.
"""

import argparse
import pathlib
import re
import shlex
import statistics
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script it finds only benchmarks/

import jax  # noqa: E402

import train  # noqa: E402
from benchmarks import cost, cost_page, step_time  # noqa: E402
from configs import cifar100_resnet20  # noqa: E402
from quantnet_jax import config as config_lib  # noqa: E402
from quantnet_jax.distributed import hosts  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

RESULTS = ROOT / "results"
METHODS = ("identity", "quantnet")
CHUNK = 50
ROUNDS = 10
EPOCHS = (10, 30)
"""Of the two short runs; both are evaluated every 10 epochs."""
COMPILED = (*cost.GRID[:1], ("resnet20", 32, 512, 64))
"""What --compile is for: it takes minutes for large networks on a CPU."""
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "opt-barrier"),
}
"""Operations of a compiled program that are no launch."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/performance.py",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument(
        "--compile", action="store_true", help="measure no time; on any machine"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--page", type=pathlib.Path, default=cost.PAGE)
    args = parser.parse_args(argv)
    if not args.compile and hosts.backend() == "cpu":
        print(
            "error: there is no accelerator here; --compile needs none", file=sys.stderr
        )
        return 2
    hosts.keep_programs()
    words = sys.argv[1:] if argv is None else argv
    about = {"command": shlex.join(["python", "benchmarks/performance.py", *words])}
    args.results.mkdir(parents=True, exist_ok=True)
    if args.compile:
        rows = [compiled_row(*point) for point in COMPILED]
        found = {"rows": rows, **about, **provenance()}
        records.write_json(args.results / "compiled.json", found)
    else:
        found = {"rows": [], **about, **provenance(), "run": None}
        for point in (("resnet20", 32, 512, cost.WIDTH), *cost.GRID):
            if point not in [point_of(row) for row in found["rows"]]:
                found["rows"].append(timed_row(*point))
                # What is known is kept, should a larger network not fit.
                records.write_json(args.results / cost_page.MEASURED, found)
                print(records.jsonable(found["rows"][-1]), flush=True)
        found["run"] = {name: run_seconds(name) for name in METHODS}
        records.write_json(args.results / cost_page.MEASURED, found)
    args.page.write_text(cost_page.page(args.results))
    print(f"wrote {args.page}")
    return 0


def point_of(row: dict[str, Any]) -> tuple[str, int, int, int]:
    """Which point of the grid a row is of."""
    return row["model"], row["pixels"], row["batch"], row["width"]


def settings(method: str, model: str, pixels: int, batch: int, width: int) -> Any:
    """The configuration of one program."""
    c = config_lib.base()
    c.epochs = 100.0
    c.batch_size = c.eval_batch_size = batch
    c.data.name = "synthetic"
    c.data.image_size, c.data.classes, c.data.pad = pixels, cost.CLASSES, 4
    c.data.train_size = max(2 * batch, 2 * cost.CLASSES)
    c.model.name = model
    c.dtype = "bfloat16"
    c.runner = "jit"
    c.steps_per_call = c.log_every = CHUNK
    c.quantizer.name = method
    c.quantizer.quantnet.width = width
    return c


def program(exp: experiment.Experiment, count: int) -> tuple[Any, tuple]:
    """(compiled program of `count` steps, its arguments)."""
    (batch,) = exp.train_batches(0, [count])
    run = exp.train_step if count == 1 else exp.train_chunk
    args = (exp.state, exp.train_data, batch)
    return run.lower(*args).compile(), args


def facts(compiled: Any) -> dict[str, int]:
    """{'memory': bytes at its peak, 'launches': of one step} of a compiled program."""
    m = compiled.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return {
        "memory": held + m.temp_size_in_bytes,
        "launches": launches(compiled.as_text()),
    }


def launches(text: str) -> int:
    """Operations that one step runs, of an optimized program of one or many steps.

    Args:
      text: of the program. The step is what has the most of them: the body of the loop
        over steps, or all, if the loops in it are small ones (of random numbers).
    """
    bodies, entry = {}, ""
    for head, name, body in re.findall(
        r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.S | re.M
    ):
        bodies[name] = body
        entry = name if head else entry

    def count(name):
        found = 0
        for line in bodies[name].splitlines():
            op = re.search(r"[\]})] ([a-z][a-z\-]*)\(", line)
            if op is None:
                continue
            found += op[1] not in FREE
            if op[1] == "call":
                found += count(re.search(r"to_apply=%?([\w.\-]+)", line)[1])
        return found

    loops = re.findall(r" while\(.*?body=%?([\w.\-]+)", text)
    return max(map(count, [*loops, entry]))


def compiled_row(model: str, pixels: int, batch: int, width: int) -> dict[str, Any]:
    """What the compiled step of a point needs, float and QuantNet."""
    point = {"model": model, "pixels": pixels, "batch": batch, "width": width}
    for method in METHODS:
        config = settings(method, model, pixels, batch, width)
        config.dtype = "float32"  # CPUs would convert there and back
        exp = experiment.build(config, jax.devices()[:1])
        point[method] = facts(program(exp, 1)[0])
    print(point, flush=True)
    return point


def timed_row(
    model: str,
    pixels: int,
    batch: int,
    width: int,
    *,
    chunk: int = CHUNK,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """The same, and 'seconds' of a step and how QuantNet's are to the float ones."""
    row: dict[str, Any] = {"model": model, "pixels": pixels}
    row |= {"batch": batch, "width": width}
    held, took = {}, {method: [] for method in METHODS}
    for method in METHODS:
        config = settings(method, model, pixels, batch, width)
        config.steps_per_call = config.log_every = chunk
        exp = experiment.build(config, jax.devices()[:1])
        compiled, args = program(exp, chunk)
        row[method] = facts(compiled)
        held[method] = [compiled, *args]
    for turn in range(rounds + step_time.WARM_UP):
        for method in METHODS[:: 1 if turn % 2 else -1]:
            compiled, state, *rest = held[method]
            began = time.perf_counter()
            state, numbers = jax.block_until_ready(compiled(state, *rest))
            took[method].append((time.perf_counter() - began) / chunk)
            held[method][1] = state
    kept = {method: x[step_time.WARM_UP :] for method, x in took.items()}
    for method, seconds in kept.items():
        row[method]["seconds"] = statistics.median(seconds)
    pairs = zip(kept["quantnet"], kept["identity"], strict=True)
    row["over_float"] = statistics.median(a / b for a, b in pairs)
    return row


def run_seconds(method: str, epochs: tuple[int, int] = EPOCHS, **changes: Any) -> float:
    """Seconds of an epoch of the training program, with its share of evaluations.

    Args:
      method: the quantizer.
      epochs: of the two runs.
      **changes: of the configuration, '__' for the dot.
    """
    took = []
    for length in epochs:
        c = cifar100_resnet20.get_config()
        c.data.name, c.data.train_size, c.data.test_size = "synthetic", 50_000, 10_000
        c.data.classes = cost.CLASSES
        c.dtype, c.epochs, c.eval_every = "bfloat16", float(length), 10.0
        c.recalibration_batches = 20
        c.quantizer.name = method
        c.report = c.tensorboard = c.export = False
        c.update_from_flattened_dict(
            {k.replace("__", "."): v for k, v in changes.items()}
        )
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            train.train(c, pathlib.Path(folder))
            took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / (epochs[1] - epochs[0])


if __name__ == "__main__":
    sys.exit(main())
