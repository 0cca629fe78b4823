"""The HTML report of runs."""

from quantnet_jax.report.load import group_runs, load_run, write_report

__all__ = ["group_runs", "load_run", "write_report"]
