"""Times a training step by the form of its kernel gradients on CPUs, and in scans.

    python -m benchmarks.kernel_gradient              # ResNet-20, batch 128
    python -m benchmarks.kernel_gradient --profile    # and where the time goes

Each form trains the float network by the functions that `train.py` uses.
"""

import collections
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import step_time, timing
from quantnet_jax.ops import cpu_conv
from quantnet_jax.training import experiment, steps

XLA, OURS = "XLA", "groups of images"
STEPS = 4
"""Of one dispatch, in the forms that have several."""
TRACED = "--xla_cpu_enable_xprof_traceme=true"
OPERATION = re.compile(r"[a-z][a-z_-]*(\.\d+)?")
KINDS = {"ynn_fusion": "products and sums", "convolution": "products and sums",
         "conv_general_dilated": "products and sums",
         "transpose_copy_fusion": "arrays turned for kernel gradients"}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.kernel_gradient", __doc__, repeats=20, load=2.5)
    parser.add_argument("--model", default="resnet20", help="name of the network")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--profile", action="store_true", help="by kind of operation")
    args = parser.parse_args(argv)
    if args.profile:  # before XLA reads them
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TRACED}".strip()
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Milliseconds of a step of each form."""
    ours, runs = cpu_conv.grouped_gradient, {}
    forms = {XLA: plain, "nine slices": slices, OURS: ours}
    try:
        for name, form in forms.items():
            cpu_conv.grouped_gradient = form
            runs[name] = step_time.start(built(args))
            runs[name]()  # traced, while the form is in its place
    finally:
        cpu_conv.grouped_gradient = ours
    profiles = {k: profile(run) for k, run in runs.items()} if args.profile else {}
    times = timing.interleaved(runs, args.repeats)
    scans = {"scan": scan(args, False), "unrolled": scan(args, True)}
    scans = {"alone": runs[OURS], **scans}
    seconds = timing.interleaved(scans, max(2, args.repeats // 4), warm_up=1)
    seconds["alone"] = [STEPS * x for x in seconds["alone"]]
    return {
        "model": args.model,
        "batch": args.batch,
        "image": [args.image_size, args.image_size, 3],
        "forms": timing.summary(times, XLA),
        "scans": {"steps": STEPS, "rows": timing.summary(seconds, "alone")},
        "profile": profiles,
    }


def built(args):
    """The experiment of the float network."""
    return experiment.build(
        step_time.settings(step_time.FLOAT, args), jax.devices()[:1]
    )


def plain(x, w, ct, *given):
    """The kernel gradient as XLA makes it."""
    return jax.vjp(lambda w: cpu_conv.plain(x, w, *given), w)[1](ct)[0]


def slices(x, w, ct, strides, pads, groups, precision):
    """A product for each position of the kernel."""
    flat = ct.reshape(-1, ct.shape[3])
    parts = cpu_conv.slices(x, w.shape[:2], strides, pads, ct.shape[1:3])
    found = [jnp.matmul(x.reshape(-1, x.shape[3]).T, flat) for x in parts]
    return jnp.stack(found).reshape(w.shape)


def scan(args, unroll: bool):
    """A call of several steps in one program."""
    exp = built(args)
    step = steps.make_train_step(exp.gradients, exp.tx, decay=0.0)
    chunk = steps.make_chunk(step, unroll)
    call = exp.runner.compile(chunk, 2, out=experiment.STEPPED, donate=True, axis=1)
    batch = next(exp.train_batches(0, [STEPS]))
    held: dict[str, Any] = {"state": exp.state}

    def run():
        held["state"], numbers = call(held["state"], exp.train_data, batch)
        jax.block_until_ready((held["state"], numbers))

    return run


def profile(run, count: int = 10) -> dict[str, float]:
    """{kind of operation: seconds of a step}; several may run at a time."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                run()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        events = [e for plane in planes for line in plane.lines for e in line.events]
    kinds: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if OPERATION.fullmatch(event.name):
            kind = KINDS.get(event.name.split(".")[0], "everything else")
            kinds[kind] += event.duration_ns / 1e9 / count
    return dict(kinds)


if __name__ == "__main__":
    sys.exit(main())
