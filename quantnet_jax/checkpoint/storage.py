"""Storage errors in one line, locks and free space of a workdir."""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from typing import IO, Any

from quantnet_jax.checkpoint.layout import short
from quantnet_jax.checkpoint.lease import BUSY, Lease
from quantnet_jax.common.files import as_path, in_bucket, move

ESTIMATE = 1.1, 1 << 18
"""Size estimate of a checkpoint: factor * array bytes + constant."""


class StorageError(OSError):
    """Something cannot be written; the message is one line."""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; existing checkpoints are intact; fix the problem and rerun"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names `path` in the errors of the block.

    Raises:
      StorageError: instead of any other OSError.
    """
    kinds = Exception if in_bucket(path) else OSError  # HTTP errors are of all kinds
    try:
        yield
    except StorageError:
        raise
    except kinds as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())[:200]
        raise StorageError(f"cannot write {os.fspath(path)!r} ({reason})") from e


@contextlib.contextmanager
def saving(folder: str) -> Iterator[None]:
    """Makes whatever Orbax raises while it writes into a folder one StorageError."""
    try:
        yield
    except Exception as error:
        cause = re.search(r"[^:\[\]]*\[os_error_code='\d+'\]", str(error))
        raise StorageError(
            f"cannot write a checkpoint into {folder!r} "
            f"({cause[0].strip() if cause else short(error)})"
        ) from error


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Creates a folder and tries to write into it.

    Raises:
      StorageError: it cannot be created or written to.
    """
    with writing(folder):
        if in_bucket(folder):
            as_path(folder).mkdir(parents=True, exist_ok=True)
            # Of this process alone: others of the run take theirs away meanwhile.
            probe = as_path(folder) / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"1")
            probe.unlink()
            return
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")


def claim(folder: str | os.PathLike[str]) -> IO[bytes] | Lease:
    """Creates a folder and locks it for this process, until the file is closed.

    The OS releases the lock when the process exits. Where there are no such locks
    (Windows, some file systems) nothing is locked. In a bucket it is a lease.

    Raises:
      StorageError: it cannot be created or written to.
      ValueError: another process holds the lock.
    """
    if in_bucket(folder):
        check_writable(folder)
        return Lease(as_path(folder) / ".lock")
    with writing(folder):
        with contextlib.suppress(FileExistsError):  # a file: `open` reports it
            os.makedirs(folder)
        file = open(os.path.join(folder, ".lock"), "ab")  # noqa: SIM115
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise ValueError(f"{os.fspath(folder)} {BUSY}") from None
    except ImportError:
        pass
    return file


def check_room(folder: str | os.PathLike[str], size: int) -> None:
    """Raises if free disk space is insufficient for a checkpoint.

    Args:
      folder: of the checkpoint.
      size: bytes of its arrays.

    Raises:
      StorageError: see above.
    """
    if in_bucket(folder):
        return
    needed = ESTIMATE[0] * size + ESTIMATE[1]
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"cannot write a checkpoint into {os.fspath(folder)!r} (no space left: it "
            f"takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free)"
        )


def set_aside_damaged(folder: Any) -> None:
    """Renames checkpoints whose metrics are no JSON object, unless all are."""
    inside = folder.iterdir() if folder.is_dir() else ()  # in a bucket: none is empty
    steps, bad = [p for p in inside if p.name.isdigit()], []
    for path in sorted(steps):
        metrics = path / "metrics" / "metrics"
        try:
            found = json.loads(metrics.read_bytes()) if metrics.is_file() else {}
        except (ValueError, RecursionError):
            found = None
        bad += [] if isinstance(found, dict) else [path]
    for path in bad if len(bad) < len(steps) else ():
        move(path, path.with_name(f"{path.name}.damaged"))
        text = f"checkpoint {os.fspath(path)!r}: its metrics are damaged"
        warnings.warn(f"{text} (renamed to .damaged)", stacklevel=3)


@contextlib.contextmanager
def without_warning(*texts: str) -> Iterator[None]:
    """Suppresses expected Orbax warnings."""
    logger = logging.getLogger("absl")

    def unlike(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in texts)

    logger.addFilter(unlike)
    try:
        yield
    finally:
        logger.removeFilter(unlike)
