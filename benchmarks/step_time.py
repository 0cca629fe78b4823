"""Times the training step of each method over that of the float network.

    python benchmarks/step_time.py        # writes results/step_time.json

Every method trains the same network on the same random images in memory, through the
functions that `train.py` uses. After a warm-up the methods take turns, one step each in
a rotating order, so that a change of the machine's load hits all of them; the numbers
are medians over the rounds.
"""

import argparse
import os
import pathlib
import shlex
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/step_time.py` finds only benchmarks/

import jax  # noqa: E402

from quantnet_jax import config as config_lib  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402
from quantnet_jax.training import experiment  # noqa: E402

FLOAT = "identity"
METHODS = (FLOAT, "quantnet", "tanh_sign", "binary_ste")
WARM_UP = 3  # steps of each method, not counted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/step_time.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--model", default="resnet20", help="name of the network")
    parser.add_argument("--batch", type=int, default=128, help="over all devices")
    parser.add_argument("--repeats", type=int, default=30, help="rounds")
    parser.add_argument("--devices", type=int, default=1, help="how many to use")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help=f"beside {FLOAT}, the reference"
    )
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "step_time.json"), help="JSON file"
    )
    args = parser.parse_args(argv)
    try:
        check(args)
        result = measure(args)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if argv is None else argv
    result["command"] = shlex.join(["python", "benchmarks/step_time.py", *words])
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, result)
    print(table(result))
    print(f"\nwrote {args.out}")
    return 0


def check(args) -> None:
    """Raises ValueError where nothing can be measured."""
    found = len(jax.devices())
    if not 1 <= args.devices <= found:
        raise ValueError(f"--devices={args.devices}, but there are 1 to {found} here")
    if args.repeats < 1:
        raise ValueError(f"--repeats={args.repeats}, expected at least 1")
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown or set(args.methods) <= {FLOAT}:
        raise ValueError(
            f"--methods {' '.join(args.methods)}: nothing to compare with {FLOAT}, "
            f"expected some of {', '.join(METHODS[1:])}"
        )


def settings(method: str, args):
    """The configuration of one method: they differ in nothing else."""
    c = config_lib.base()
    c.epochs = 100.0
    c.batch_size = c.eval_batch_size = args.batch
    c.data.name = "synthetic"
    c.data.image_size, c.data.classes, c.data.pad = args.image_size, 10, 4
    c.data.train_size = 4 * args.batch
    c.model.name = args.model
    c.quantizer.name = method
    c.export = False
    return c


def measure(args) -> dict:
    """Medians, quartiles and ratios of the step time, and all there is to know."""
    methods = [FLOAT, *(m for m in METHODS[1:] if m in args.methods)]
    devices = jax.devices()[: args.devices]
    runs = {m: start(experiment.build(settings(m, args), devices)) for m in methods}
    return {
        "benchmark": "seconds of one training step",
        "model": args.model,
        "batch": args.batch,
        "image": [args.image_size, args.image_size, 3],
        "repeats": args.repeats,
        **take_turns(runs, args.repeats),
        **provenance(),
        "devices_used": args.devices,
    }


def take_turns(runs: dict, repeats: int) -> dict:
    """Times of all runs, one step each in a rotating order, and the machine's load.

    Args:
      runs: name -> `step()`, one training step to its end; the first is the reference.
      repeats: rounds.
    """
    load = {"before": os.getloadavg()}
    methods = list(runs)
    for _ in range(WARM_UP):
        for name in methods:
            runs[name]()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats):
        shift = turn % len(methods)
        for name in methods[shift:] + methods[:shift]:
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    load["after"] = os.getloadavg()
    rows = {}
    for name, times in seconds.items():
        reference = seconds[methods[0]]
        paired = [a / b for a, b in zip(times, reference, strict=True)]
        rows[name] = {
            "median": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "over_float": statistics.median(times) / statistics.median(reference),
            "over_float_paired": statistics.median(paired),
        }
    return {
        "warm_up": WARM_UP,
        "methods": rows,
        "cores": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load": load,
    }


def start(exp):
    """`step()`: one training step to its end, on batches made beforehand."""
    stream = exp.train_batches(0)
    batches = [next(stream) for _ in range(4)]
    held = {"state": exp.state, "count": 0}

    def step():
        batch = batches[held["count"] % len(batches)]
        state, numbers = exp.train_step(held["state"], exp.train_data, batch)
        jax.block_until_ready((state, numbers))
        held.update(state=state, count=held["count"] + 1)

    return step


def table(result: dict) -> str:
    """The text that the command prints."""
    rows = [
        (name, f"{1e3 * r['median']:.1f}", f"{r['over_float']:.3f}",
         f"{r['over_float_paired']:.3f}")
        for name, r in result["methods"].items()
    ]  # fmt: skip
    head = (
        f"{result['model']}, batch {result['batch']}, {result['devices_used']} of "
        f"{result['device']}, {result['cores']} cores, medians of {result['repeats']}\n"
    )
    titles = ("method", "ms a step", "over float", "paired")
    return head + "\n" + records.table(rows, titles)


if __name__ == "__main__":
    sys.exit(main())
