"""Trains an experiment: `python train.py [--config=FILE] [--workdir=DIR] [overrides]`.

Rerunning with the same workdir resumes. Options of the configuration are changed on the
command line, as in `--config.quantizer.name=binary_ste --config.seed=1`.
"""

import contextlib
import math
import pathlib
import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from quantnet_jax import report
from quantnet_jax.training import checkpoint, experiment, metrics, parallel
from quantnet_jax.training import config as config_lib
from quantnet_jax.training.provenance import provenance

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = config_flags.DEFINE_config_file(
    "config", str(HERE / "configs" / "default.py"), "the experiment, a Python file"
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


def main(argv):
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; options start with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(WORKDIR.value)
    with one_line_errors():
        config_lib.check(CONFIG.value)
        parallel.initialize(
            DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value
        )
    baseline = None
    if CONFIG.value.float_baseline:
        float_config = ConfigDict(CONFIG.value)
        float_config.float_baseline = False
        float_config.quantizer.name = "identity"
        baseline = train(float_config, workdir / "float")
    train(CONFIG.value, workdir, baseline)


def train(config: ConfigDict, workdir: pathlib.Path, baseline: dict | None = None):
    """Trains, or goes on training, one configuration in one folder.

    Args:
      config: see `quantnet_jax.training.config`.
      workdir: is made; gets config.json, metrics.jsonl, checkpoints/, TensorBoard
        events and at the end result.json and report.html.
      baseline: result of the float run to print beside this one.

    Returns:
      What result.json holds.
    """
    # Build everything before anything is written --------------------------------------
    with one_line_errors():
        config_lib.check_same_run(config, workdir)
        exp = experiment.build(config)
        warm_arrays = None
        if config.init_from:
            with checkpoint.Checkpoints(config.init_from, read_only=True) as source:
                warm_arrays = source.load_arrays().state
    runner, state = exp.runner, exp.state
    writes = runner.process_index == 0
    if writes:
        workdir.mkdir(parents=True, exist_ok=True)
        metrics.write_json(workdir / "config.json", config.to_dict())

    # Resume, or warm-start, or start from scratch -------------------------------------
    checkpoints = checkpoint.Checkpoints(
        workdir, keep_latest=config.keep_latest, processes=runner.process_count
    )
    seconds, codes, start, notes = 0.0, None, 0, []
    with one_line_errors():
        if checkpoints.latest() is not None:
            restored = checkpoints.restore(jax.device_get(state))
            state, start = runner.replicate(restored.state), restored.step
            seconds = restored.extra["seconds"]
            codes = exp.codes(state)
            notes.append(f"resuming {workdir} at step {start}")
        elif warm_arrays is not None:
            like = {"params": state.params, "batch_stats": state.batch_stats}
            warm, matched = checkpoint.warm_start(jax.device_get(like), warm_arrays)
            state = state._replace(**runner.replicate(warm))
            notes.append(f"{matched} (from {config.init_from})")

    # The loop -------------------------------------------------------------------------
    epoch = lambda step: step / exp.epoch_steps
    every = config.eval_every * exp.epoch_steps
    stops = {round(k * every) for k in range(1, math.ceil(exp.steps / every))}
    stops = {step for step in stops if step > 0} | {exp.steps}
    writer = metrics.Writer(
        workdir,
        tensorboard=config.tensorboard,
        resume_step=start if start else None,
        active=writes,
    )
    progress = metrics.Progress(exp.steps, start=start, active=writes)
    batches = exp.train_batches(start)
    scores, layers, pending, began = {}, {}, [], time.monotonic()

    def flush(step):
        """Reads the metrics of the steps since the last call: check, average, log."""
        values = jax.device_get([m for _, m in pending])
        for (number, _), value in zip(pending, values, strict=True):
            if not math.isfinite(value["loss"]):
                last = checkpoints.latest()
                kept = (
                    f"step {last} is kept" if last is not None else "none was written"
                )
                sys.exit(
                    f"error: the loss is {value['loss']} at step {number}; nothing "
                    f"after it was saved (last good checkpoint: {kept}); lower "
                    "weights.learning_rate or set weights.clip"
                )
        record = {k: sum(float(v[k]) for v in values) / len(values) for k in values[0]}
        record |= {"epoch": epoch(step), "lr": float(exp.learning_rate(step - 1))}
        took = (time.monotonic() - clock) / len(values)
        record |= {
            "step_time": took,
            "examples_per_second": config.batch_size / took,
        }
        writer.write("train", step, record)
        pending.clear()
        return {k: record[k] for k in ("loss", "penalty")}

    for note in notes:
        progress.say(note)
    clock = time.monotonic()
    with checkpoints, writer, progress:
        for step in range(start + 1, exp.steps + 1):
            state, step_metrics = exp.train_step(state, exp.train_data, next(batches))
            pending.append((step, step_metrics))
            shown = None
            if step % config.log_every == 0 or step in stops:
                shown = flush(step)
            if step in stops:
                scores, layers, codes = exp.evaluate(state, codes)
                writer.write("eval", step, {"epoch": epoch(step), **scores})
                writer.write("layers", step, {"layers": layers})
                writer.flush()
                seconds += time.monotonic() - began
                began = time.monotonic()
                checkpoints.save(step, state, scores, {"seconds": seconds})
                shown |= {k: v for k, v in scores.items() if k in metrics.ACCURACIES}
            progress.update(step, shown)
            if shown:
                clock = time.monotonic()
        if not scores:  # the run was complete before
            scores, layers, codes = exp.evaluate(state, None)

    # Result, table, report ------------------------------------------------------------
    result = {
        "method": config.quantizer.name,
        "seed": config.seed,
        "steps": exp.steps,
        "seconds": seconds,
        **scores,
        **({"float": baseline["hard"]} if baseline else {}),
        "layers": {k: {**v, "histogram": None} for k, v in layers.items()},
        **provenance(),
    }
    if writes:
        metrics.write_json(workdir / "result.json", result)
        print(metrics.summary(result))
        if config.report:
            page = report.write_report([workdir], workdir / "report.html")
            print(f"\nreport: {page}")
    return result


@contextlib.contextmanager
def one_line_errors():
    """Turns what a user can mend into one line and exit code 1."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    app.run(main)
