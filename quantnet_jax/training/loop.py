"""The training loop: steps, records, evaluations, checkpoints, preemption."""

import contextlib
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from quantnet_jax.checkpoint.manager import Checkpoints
from quantnet_jax.distributed import hosts
from quantnet_jax.distributed.preemption import Preemption
from quantnet_jax.evaluation import gap
from quantnet_jax.logging import records
from quantnet_jax.logging.meter import Meter, tracing
from quantnet_jax.logging.progress import Progress
from quantnet_jax.logging.provenance import provenance
from quantnet_jax.logging.scores import unit_of
from quantnet_jax.logging.step_log import Diverged, StepLog, check_finite
from quantnet_jax.training import dispatch, parts, resume
from quantnet_jax.training.experiment import Experiment
from quantnet_jax.training.state import TrainState

WIDE = 0.1
"""Part of the soft score from which on a gap in the middle of a run is explained."""
GAP = (
    "note: the gap is soft - hard at this step; methods with a schedule (sharpness, "
    "penalty) close it towards the end of training"
)


class Outcome(NamedTuple):
    """How the loop ended.

    Attributes:
      state: after the last step.
      step: steps done.
      scores, layers: of the last evaluation; see `Experiment.evaluate`.
      seconds: of training, over all starts.
      preempted: whether it stopped early, with a checkpoint of this step.
    """

    state: TrainState
    step: int
    scores: dict[str, Any]
    layers: dict[str, Any]
    seconds: float
    preempted: bool


def stops(exp: Experiment) -> tuple[dispatch.Stops, dispatch.Stops]:
    """Steps after which a run is evaluated and saved, and after which only saved."""
    c = exp.config
    return dispatch.stops(exp.steps, c.eval_every * exp.epoch_steps, c.checkpoint_every)


def run(
    exp: Experiment,
    start: resume.Start,
    checkpoints: Checkpoints,
    preemption: Preemption,
    workdir: pathlib.Path,
    profile: bool = False,
) -> Outcome:
    """Trains from `start` to the end, or until preempted.

    Args:
      exp: the experiment.
      start: of `resume.start`; its state is donated.
      checkpoints: of the workdir.
      preemption: entered before anything was built.
      workdir: gets metrics.jsonl and TensorBoard events.
      profile: write a trace of ten steps to `workdir/profile`.

    Raises:
      Diverged: a number is not finite; nothing of it was saved.
      ValueError: more than `data.max_unreadable` unreadable examples.
    """
    config, (evaluations, saves) = exp.config, stops(exp)
    writes = exp.runner.process_index == 0
    state, step, codes = start.state, start.step, start.codes
    explained, compiled = False, set()
    scores, layers, spent, began = {}, {}, start.seconds, time.monotonic()
    meter = Meter()
    train_step, train_chunk = map(meter.compiled, (exp.train_step, exp.train_chunk))
    sizes = (exp.steps_per_call, [evaluations, saves])
    counts = lambda: dispatch.counts(start.step, exp.steps, *sizes)
    batches = meter.waiting(exp.train_batches(step, counts()))
    with contextlib.ExitStack() as held:
        held.enter_context(checkpoints)
        held.enter_context(_last_good(checkpoints))
        writer = held.enter_context(
            records.Writer(
                workdir,
                tensorboard=config.tensorboard,
                resume_step=step or None,
                active=writes,
            )
        )
        unit = unit_of(exp.task.primary._asdict())
        progress = held.enter_context(
            Progress(exp.steps, unit=unit, start=step, active=writes)
        )
        tick = held.enter_context(tracing(workdir / "profile" if profile else None))
        log = StepLog(writer, meter, config.batch_size, start.seen)
        if start.note:
            progress.write(start.note)

        def save(scores=None):
            """Starts a checkpoint of the state, which must be finite."""
            log.fetch()
            # The update of this very step may have been the first bad one.
            if scores:
                check_finite(step, scores["loss_soft"], scores)
            if not exp.is_finite(state):
                raise Diverged(step, math.nan, "state", math.nan)
            writer.flush()
            spent = start.seconds + time.monotonic() - began
            extra = resume.extra(
                config, exp.feed.train_size, step, seconds=spent, seen=log.rows
            )
            # Codes for the next flip rate; of an evaluated state they are known.
            checkpoints.save(step, state, scores, extra, None if scores else codes)
            return spent

        for count, batch in zip(counts(), batches, strict=True):
            call = train_step if count == 1 else train_chunk
            first = count not in compiled
            compiled.add(count)
            with (
                hosts.phase("compiling the step") if first else contextlib.nullcontext()
            ):
                state, step_metrics = call(state, exp.train_data, batch)
            step += count
            log.add(step, count, step_metrics)
            tick(step, state)
            shown: dict[str, Any] = {}
            if step % config.log_every == 0 or evaluations(step):
                rate = float(exp.learning_rate(step - 1))
                row = {"epoch": step / exp.epoch_steps, "lr": rate}
                if exp.feed.train_data is None:
                    row["unreadable"] = exp.feed.unreadable()
                row = log.record(step, **row)
                shown = {k: row[k] for k in ("loss", "penalty")}
            if evaluations(step):
                with hosts.phase(f"evaluating on {exp.test_size:,} examples"):
                    scores, layers, codes = exp.evaluate(state, codes)
                flips = {"flips": gap.flip_rate(layers)}
                record = {"epoch": step / exp.epoch_steps, **scores, **flips}
                record |= parts.sharpness(config, exp.steps, step)
                record["metric"] = exp.task.primary._asdict()
                writer.write("eval", step, record)
                writer.write("layers", step, {"layers": layers})
                trees = ("soft", "hard", "hard_bn", "gap")
                shown |= {k: scores[k] for k in trees if k in scores}
            stop = preemption.reached() and step < exp.steps
            if evaluations(step):
                spent = save(scores)
            elif saves(step) or stop:
                spent = save()
            progress.update(step, shown)
            wide = abs(scores.get("gap") or 0) > WIDE * abs(scores.get("soft") or 0)
            if wide and evaluations(step) and step < exp.steps and not explained:
                explained = True
                progress.write(GAP)
            if stop:
                saved = f"checkpoint saved at step {step}; rerun to resume"
                progress.write(f"received {preemption.signal}: {saved}")
                return Outcome(state, step, scores, layers, spent, True)
            if shown:
                meter.restart()
        if not scores:  # the run was complete before
            scores, layers, codes = exp.evaluate(state, None)
    return Outcome(state, step, scores, layers, spent, False)


@contextlib.contextmanager
def _last_good(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to the error of a run that diverged what is left, and what to do."""
    try:
        yield
    except Diverged as e:
        last = checkpoints.latest()
        e.args = (
            f"{e}; nothing of it was saved (last good checkpoint: "
            f"{'none' if last is None else f'step {last}'}); lower "
            "weights.learning_rate or set weights.clip",
        )
        raise


def result(exp: Experiment, outcome: Outcome) -> dict[str, Any]:
    """What result.json holds of a finished run."""
    once = ("histogram", "flips")  # they compare with the evaluation before
    return {
        "method": exp.config.quantizer.name,
        "seed": exp.config.seed,
        "steps": exp.steps,
        "seconds": outcome.seconds,
        "metric": exp.task.primary._asdict(),
        **outcome.scores,
        "layers": {
            path: {k: v for k, v in layer.items() if k not in once}
            for path, layer in outcome.layers.items()
        },
        **provenance(),
    }
