"""Trains an experiment: `python train.py [--config=FILE] [--workdir=DIR] [overrides]`.

Rerunning with the same workdir resumes; a run that got SIGTERM saves the next step and
ends with code 75, which says so. Options of the configuration are changed on the
command line, as in `--config.quantizer.name=binary_ste --config.seed=1`.
"""

import contextlib
import math
import pathlib
import sys
import time

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from quantnet_jax import config as config_lib
from quantnet_jax import export, report
from quantnet_jax.checkpoint import manager, storage
from quantnet_jax.config import flags as command_line
from quantnet_jax.data import TooManyUnreadable
from quantnet_jax.distributed import hosts
from quantnet_jax.distributed.preemption import RESUME_ME, Preemption
from quantnet_jax.evaluation import gap
from quantnet_jax.logging import records
from quantnet_jax.logging.meter import Meter, tracing
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.logging.step_log import Diverged, StepLog, check_finite
from quantnet_jax.training import dispatch, experiment, resume

WARM_START = "warm_start.json"
DEFAULT_CONFIG = pathlib.Path(__file__).resolve().parent / "configs" / "default.py"
# Without a default of its own: ml_collections would read it, with the overrides, here
# and now, where `command_line` cannot turn errors into one line.
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment, FILE.py or FILE.py:VARIANT; configs/default.py"
)
WORKDIR = flags.DEFINE_string("workdir", "runs/default", "folder of the run")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "several processes: find them (TPU pod, Slurm, GKE)"
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where they cannot be found"
)
PROCESSES = flags.DEFINE_integer("processes", 1, "with --coordinator: how many")
PROCESS = flags.DEFINE_integer("process", 0, "with --coordinator: which is this one")
PROFILE = flags.DEFINE_bool(
    "profile", False, "write a trace of ten steps to WORKDIR/profile"
)


def main(argv):
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; options start with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if "://" in WORKDIR.value:
        sys.exit(
            f"error: --workdir={WORKDIR.value}: expected a folder; mount the bucket "
            "and name the folder, see docs/tpu_pod.md"
        )
    workdir = pathlib.Path(WORKDIR.value)
    with one_line_errors():
        config_lib.check(CONFIG.value)
        hosts.initialize(
            DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value
        )
    with disk_errors(), hosts.watched(workdir, orderly=(RESUME_ME,)):
        train_with_baseline(CONFIG.value, workdir, PROFILE.value)


def train_with_baseline(config: ConfigDict, workdir: pathlib.Path, profile: bool):
    """Trains a configuration, after the float network if that is wanted too."""
    baseline = None
    if config.float_baseline:
        with one_line_errors():  # not after the float run only
            config_lib.check_same_run(config, workdir)
            trial = config.copy_and_resolve_references()
            trial.distillation.workdir = ""  # the float run may become the teacher
            experiment.build(trial)
        # A ConfigDict made of another one would share its sections.
        float_config = config.copy_and_resolve_references()
        float_config.float_baseline = False
        float_config.quantizer.name = "identity"
        float_config.activation.name = ""
        float_config.export = False  # compared with, not shipped
        float_config.distillation.workdir = ""  # it may become the teacher itself
        baseline = train(float_config, workdir / "float")
    train(config, workdir, baseline, profile=profile)


def parse_flags(argv):
    """Parses the command line."""
    return command_line.parse(argv, flags.FLAGS, CONFIG, DEFAULT_CONFIG)


@contextlib.contextmanager
def disk_errors():
    """Tells in one line what cannot be written: a full disk, a wrong place."""
    try:
        yield
    except OSError as e:
        told = storage.told(e)
        if not told:
            raise
        sys.exit(f"error: {told}; what was saved is safe: mend this and start again")


@disk_errors()
def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    baseline: dict | None = None,
    *,
    profile: bool = False,
):
    """Trains, or goes on training, one configuration in one folder.

    Args:
      config: see `quantnet_jax.training.config`.
      workdir: is made; gets config.json, records.jsonl, checkpoints/, TensorBoard
        events, after a warm start warm_start.json, and at the end result.json, export/
        and report.html.
      baseline: result of the float run to print beside this one.
      profile: write a trace of ten steps to `workdir/profile`.

    Returns:
      What result.json holds.
    """
    with contextlib.ExitStack() as held:
        preemption = held.enter_context(Preemption())  # building may take minutes
        return _train(config, workdir, baseline, preemption, profile, held)


def _train(config, workdir, baseline, preemption: Preemption, profile: bool, held):
    # Build everything before anything is written --------------------------------------
    with one_line_errors():
        config_lib.check_same_run(config, workdir)
        exp = experiment.build(config)
    runner, state = exp.runner, exp.state
    writes = runner.process_index == 0

    # Resume, or warm-start, or start from scratch -------------------------------------
    seconds, codes, start, seen, notes, taken = 0.0, None, 0, [], [], None
    evaluations, saves = dispatch.stops(
        exp.steps, config.eval_every * exp.epoch_steps, config.checkpoint_every
    )
    with one_line_errors():
        if writes:
            held.enter_context(storage.claim(workdir))
        checkpoints = manager.Checkpoints(
            workdir,
            keep_latest=config.keep_latest,
            processes=runner.process_count,
            deletes=writes,
        )
        if checkpoints.latest() is not None:
            restored = checkpoints.restore(state)
            start, extra = restored.step, restored.extra
            resume.check(extra, config, exp.feed.train_size, start)
            seconds, seen = extra["seconds"], extra["seen"]
            state = runner.place(restored.state)
            codes = (
                exp.codes(state) if start in evaluations else restored.beside or None
            )
            notes.append(f"resuming {workdir} at step {start}")
        elif config.init_from:
            like = {"params": state.params, "batch_stats": state.batch_stats}
            with manager.Checkpoints(config.init_from, read_only=True) as source:
                step, saved, *_ = source.load_arrays()
            warm, matched = manager.warm_start(like, saved)
            if warm["params"]["quant"]:
                # What was not saved begins from the weights that were, not from random.
                warm["params"]["quant"] = exp.fit(warm["params"]["model"])
                warm, matched = manager.warm_start(warm, saved)
            state = state._replace(**runner.place(warm))
            notes.append(f"{matched} (from {config.init_from}; {WARM_START})")
            taken = {"from": config.init_from, "step": step, **matched._asdict()}
    # Only now: a run that could not start must not claim the workdir.
    if writes:
        records.write_json(workdir / "config.json", config.to_dict())
        if taken:
            records.write_json(workdir / WARM_START, taken)

    # The loop -------------------------------------------------------------------------
    writer = records.Writer(
        workdir,
        tensorboard=config.tensorboard,
        resume_step=start if start else None,
        active=writes,
    )
    progress = records.Progress(exp.steps, start=start, active=writes)
    trace = tracing(workdir / "profile" if profile else None)
    meter = Meter()
    train_step, train_chunk = map(meter.compiled, (exp.train_step, exp.train_chunk))
    log = StepLog(writer, meter, config.batch_size, seen)
    counts = list(dispatch.counts(start, exp.steps, exp.chunk, evaluations | saves))
    batches = meter.waiting(exp.train_batches(start, counts))
    scores, layers, step, spent, began = {}, {}, start, seconds, time.monotonic()

    def save(scores=None):
        """Starts a checkpoint of the state, which must be sound; seconds of the run."""
        log.fetch()
        # The update of this very step may have been the first bad one.
        if scores:
            check_finite(step, scores["loss_soft"], scores)
        if not exp.is_finite(state):
            raise Diverged(step, math.nan, "state", math.nan)
        writer.flush()
        spent = seconds + time.monotonic() - began
        size = exp.feed.train_size
        extra = resume.extra(config, size, step, seconds=spent, seen=log.seen)
        # With what the next evaluation compares; of an evaluated state it is known.
        checkpoints.save(step, state, scores, extra, None if scores else codes)
        return spent

    with checkpoints, writer, progress, trace as tick, told(checkpoints):
        for note in notes:
            progress.say(note)
        for count, batch in zip(counts, batches, strict=True):
            run = train_step if count == 1 else train_chunk
            state, step_metrics = run(state, exp.train_data, batch)
            step += count
            log.add(step, count, step_metrics)
            tick(step, state)
            shown = None
            if step % config.log_every == 0 or step in evaluations:
                rate = float(exp.learning_rate(step - 1))
                row = {"epoch": step / exp.epoch_steps, "lr": rate}
                if exp.feed.train_data is None:
                    row["unreadable"] = exp.feed.unreadable()
                row = log.record(step, **row)
                shown = {k: row[k] for k in ("loss", "penalty")}
            if step in evaluations:
                scores, layers, codes = exp.evaluate(state, codes)
                flips = {"flips": gap.flip_rate(layers)}
                record = {"epoch": step / exp.epoch_steps, **scores, **flips}
                writer.write("eval", step, record)
                writer.write("layers", step, {"layers": layers})
                shown |= {k: v for k, v in scores.items() if k in records.ACCURACIES}
            stop = preemption.reached() and step < exp.steps
            if step in evaluations:
                spent = save(scores)
            elif step in saves or stop:
                spent = save()
            progress.update(step, shown)
            if stop:
                progress.say(f"told to stop: saved step {step}; start again to go on")
                sys.exit(RESUME_ME)
            if shown:
                meter.restart()
        if not scores:  # the run was complete before
            scores, layers, codes = exp.evaluate(state, None)

    # Result, table, report ------------------------------------------------------------
    result = {
        "method": config.quantizer.name,
        "seed": config.seed,
        "steps": exp.steps,
        "seconds": spent,
        **scores,
        **({"float": baseline["hard"]} if baseline else {}),
        # What belongs to this step alone; 'flips' compares with the one before.
        "layers": {
            path: {k: v for k, v in layer.items() if k not in ("histogram", "flips")}
            for path, layer in layers.items()
        },
        **provenance(),
    }
    if writes:
        records.write_json(workdir / "result.json", result)
    # What ships, proved to predict what was scored. The numbers of the run are safe by
    # now, and are shown before a proof that failed ends it.
    refused = None
    if config.export and runner.process_count == 1:
        try:
            made = export.export_state(exp, state, workdir / "export")
            result |= {k: made[k] for k in ("packed", "exported")}
            records.write_json(workdir / "result.json", result)
        except ValueError as e:
            refused = f"error: {workdir / 'export'}: {e}"
    if writes:
        print(records.summary(result))
        if config.report:
            page = report.write_report([workdir], workdir / "report.html")
            print(f"\nreport: {page}")
        if "packed" in result:
            print(f"export: {workdir / 'export'}")
        elif config.export and not refused:
            print("export: python -m quantnet_jax.export, in a single process")
    if refused:
        sys.exit(refused)
    return result


@contextlib.contextmanager
def told(checkpoints: manager.Checkpoints):
    """Ends in one line a run that diverged, with nothing saved, or lost its data."""
    try:
        yield
    except TooManyUnreadable as e:
        sys.exit(f"error: {e}")
    except Diverged as e:
        last = checkpoints.latest()
        sys.exit(
            f"error: {e}; nothing of it was saved (last good checkpoint: "
            f"{'none' if last is None else f'step {last}'}); lower "
            "weights.learning_rate or set weights.clip"
        )


@contextlib.contextmanager
def one_line_errors():
    """Turns what a user can mend into one line and exit code 1."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
