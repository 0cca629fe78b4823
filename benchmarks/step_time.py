"""Times the training step of each method over that of the float network.

    python -m benchmarks.step_time                    # four methods on ResNet-20
    python -m benchmarks.step_time --study gap_table  # every row of a study
    python -m benchmarks.step_time --torch ENV/bin/python  # and PyTorch, float

Every method trains the same network on the same few images in memory, through the
functions that `train.py` uses.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import jax

from benchmarks import timing
from quantnet_jax import config as config_lib
from quantnet_jax.experiments import grid
from quantnet_jax.experiments.study import Run
from quantnet_jax.training import experiment

FLOAT = "identity"
METHODS = (FLOAT, "quantnet", "tanh_sign", "binary_ste")
TORCH = pathlib.Path(__file__).with_name("torch_step.py")


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.step_time", __doc__, repeats=30, load=2.5)
    parser.add_argument("--model", default="resnet20", help="name of the network")
    parser.add_argument("--batch", type=int, default=128, help="over all devices")
    parser.add_argument("--devices", type=int, default=1, help="how many to use")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--study", default="", help="time its rows instead")
    parser.add_argument("--torch", default="", help="a Python that has PyTorch")
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Step times of all methods, or of the rows of a study."""
    found = len(jax.devices())
    if not 1 <= args.devices <= found:
        raise ValueError(f"--devices={args.devices}, but there are 1 to {found} here")
    beside = torch(args) if args.torch else None
    if args.study:
        configs, about = of_study(args.study), {"study": args.study}
    else:
        names = [FLOAT, *(m for m in METHODS[1:] if m in args.methods)]
        configs = {name: settings(name, args) for name in names}
        about = {"model": args.model, "batch": args.batch}
        about["image"] = [args.image_size, args.image_size, 3]
    devices = jax.devices()[: args.devices]
    runs = {k: start(experiment.build(c, devices)) for k, c in configs.items()}
    if beside:
        about["torch"], runs["PyTorch, float"] = beside
    # Threads of one library may spin for a while after its step.
    pause = 0.2 if beside else 0.0
    times = timing.interleaved(runs, args.repeats, pause=pause)
    rows = timing.summary(times, FLOAT)
    for name, row in rows.items():
        print(f"{name:40s}{1e3 * row['median']:8.1f} ms{row['over_float_paired']:6.2f}")
    return about | {"methods": rows, "devices_used": args.devices}


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


def torch(args) -> tuple[dict, Callable[[], float]]:
    """What `torch_step.py` says of itself, and a call of one of its steps."""
    depth = args.model.removeprefix("resnet")
    if not depth.isdecimal() or int(depth) not in range(8, 200, 6):
        raise ValueError(f"--model={args.model}, expected resnet8, ... with --torch")
    words = [(int(depth) - 2) // 6, args.batch, args.image_size]
    process = subprocess.Popen(
        [args.torch, str(TORCH), *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    sent, answers = process.stdin, process.stdout
    if not (about := answers.readline()):
        process.communicate()
        raise ValueError(f"--torch={args.torch} cannot run {TORCH.name}")

    def step() -> float:
        print(file=sent, flush=True)
        return float(answers.readline())

    return json.loads(about), step


def of_study(name: str) -> dict:
    """{row: configuration} of a study whose float row is the identity."""
    study, configs = grid.load(name), {}
    for row in study.rows:
        start = study.initializations_of(row)[0]
        c = study.configure(study, Run("final", row, "", start, 0.1, 0, False))
        c.data.train_size = 10 * c.batch_size
        configs[row] = c
    return configs


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


if __name__ == "__main__":
    sys.exit(main())
