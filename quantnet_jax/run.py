"""One run: training, result, verified export and report."""

import contextlib
import pathlib
import sys

from quantnet_jax import config as config_lib
from quantnet_jax import exhibits, export, report
from quantnet_jax.checkpoint import manager, storage
from quantnet_jax.distributed import hosts
from quantnet_jax.distributed.preemption import RESUME_ME, Preemption
from quantnet_jax.logging import records
from quantnet_jax.logging.progress import summary
from quantnet_jax.training import experiment, loop, resume
from quantnet_jax.trees import paths


def train(
    config: config_lib.Config,
    workdir: pathlib.Path,
    *,
    profile: bool = False,
    preemption: Preemption | None = None,
) -> dict:
    """Trains a configuration, resuming if `workdir` has a checkpoint.

    After the float network, in WORKDIR/float, if `config.float_baseline`.

    Args:
      config: see `quantnet_jax.config`.
      workdir: created if missing; receives config.json, metrics.jsonl, checkpoints/,
        TensorBoard events, after a warm start warm_start.json, and at the end
        result.json, export/, exhibits.json and report.html.
      profile: write a trace of ten steps to `workdir/profile`.
      preemption: entered; one of its own by default.

    Returns:
      What result.json holds.

    Raises:
      ValueError, FileNotFoundError, ImportError: one line that names the key or file.
      StorageError: something cannot be written.
      Diverged: a number is infinite or NaN.
      SystemExit: with code 75, preempted.
    """
    with contextlib.ExitStack() as held:
        if preemption is None:  # building may take minutes
            preemption = held.enter_context(Preemption())
        before = config.float_baseline  # then its teacher may not be trained yet
        with hosts.phase("reading the data"):
            exp = experiment.build(config_lib.untaught(config) if before else config)
        # Only now: in a workdir of another run it would hide what else is wrong.
        config_lib.check_same_run(config, workdir)
        if writes := hosts.process_index() == 0:
            held.enter_context(storage.claim(workdir))
        baseline = None
        if before:
            twin = config_lib.float_twin(config, paths.flatten(exp.shapes))
            baseline = train(twin, workdir / "float", preemption=preemption)
            if preemption.signalled:  # by a signal at its last step
                sys.exit(RESUME_ME)
            exp = experiment.build(config)
        checkpoints = manager.Checkpoints(
            workdir,
            keep_latest=config.keep_latest,
            higher_is_better=exp.task.primary.higher_is_better,
            processes=exp.runner.process_count,
            deletes=writes,
        )
        with hosts.phase("preparing the first step"):
            start = resume.start(exp, checkpoints, loop.stops(exp)[0])
        if writes:  # only now: a run that could not start must not claim the workdir
            records.write_json(workdir / "config.json", config.to_dict())
            if start.warm:
                records.write_json(workdir / "warm_start.json", start.warm)
        outcome = loop.run(exp, start, checkpoints, preemption, workdir, profile)
        if outcome.preempted:
            sys.exit(RESUME_ME)
        return finish(exp, outcome, workdir, baseline)


def finish(
    exp: experiment.Experiment,
    outcome: loop.Outcome,
    workdir: pathlib.Path,
    baseline: dict | None,
) -> dict:
    """Writes result.json, the verified export and the report; prints the summary."""
    config, result = exp.config, loop.result(exp, outcome)
    if baseline:
        result["float"] = baseline["hard"]
    writes, failure, outputs = exp.runner.process_index == 0, None, None
    if writes:
        records.write_json(workdir / "result.json", result)
    # The numbers of the run are saved, and shown before a failed verification ends it.
    if config.export and exp.runner.process_count == 1:
        try:
            with hosts.phase(f"verifying the export on {exp.test_size:,} examples"):
                made = export.export_state(exp, outcome.state, workdir / "export")
            outputs = made["outputs"]["hard"]
            result |= {k: made[k] for k in ("packed", "exported")}
            records.write_json(workdir / "result.json", result)
        except ValueError as e:
            failure = f"{workdir / 'export'}: {e}"
    if writes:
        print(summary(result))
        if config.report:
            if exp.runner.process_count == 1:
                shown = exhibits.collect(exp, outcome.state, outputs)
                records.write_json(workdir / exhibits.FILE, shown)
            page = report.write_report([workdir], workdir / "report.html")
            print(f"\nreport: {page}")
        if "packed" in result:
            print(f"export: {workdir / 'export'}")
        elif config.export and not failure:
            print("export: python -m quantnet_jax.export, in a single process")
    if failure:
        raise ValueError(failure)
    return result
