"""The HTML report of runs."""

import os
from collections.abc import Sequence

from quantnet_jax.common.files import write_atomic
from quantnet_jax.report.load import group_runs, load_run
from quantnet_jax.report.page import render

__all__ = ["group_runs", "load_run", "write_report"]


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
) -> str:
    """Writes one self-contained page about the runs and returns its path.

    Args:
      workdirs: folders of runs, in progress or finished.
      out: the page; by default `report.html` in the first folder.

    Raises:
      FileNotFoundError: a folder or its metrics.jsonl is missing.
      ValueError: no folder is given, or a file in it is not JSON.
    """
    if not workdirs:
        raise ValueError("workdirs is empty; give at least one run folder")
    runs = [load_run(workdir) for workdir in workdirs]
    names = [run.name for run in runs]
    distinct = [
        run if names.count(run.name) == 1 else run._replace(name=os.fspath(folder))
        for run, folder in zip(runs, workdirs, strict=True)
    ]
    path = os.fspath(out or os.path.join(workdirs[0], "report.html"))
    write_atomic(path, render(distinct, group_runs(runs)))
    return path
