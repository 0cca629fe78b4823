"""Provenance of a result: versions, device, commit."""

import importlib.metadata
import pathlib
import platform
import subprocess

from quantnet_jax.distributed.hosts import describe_devices

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance() -> dict:
    """{'versions': {package: version}, 'device': text, 'commit': hash or None}."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "device": describe_devices(), "commit": _commit()}


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, '+' if it was edited.

    Records in its `results/` are not edits: a study appends to them run by run.
    """
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*args):
        command = ["git", "-C", str(root), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        where = ("--", ".", ":!results")
        edited = git("status", "--porcelain", "--untracked-files=no", *where)
        return git("rev-parse", "HEAD") + ("+" if edited else "")
    except (OSError, subprocess.CalledProcessError):
        return None
