"""Errors of the disk in one line that says which folder, why, and what is safe."""

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

SLACK = 1.1, 1 << 18
"""A checkpoint takes so many times the bytes of its arrays, and so many bytes more."""


CAUSES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO, errno.ESTALE),
)


class StorageError(OSError):
    """Something cannot be written; the message is one line."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names `path` in the errors of what is written inside of the block.

    Raises:
      StorageError: instead of any other OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as e:
        raise StorageError(
            f"cannot write {os.fspath(path)!r} ({e.strerror or e})"
        ) from e


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Makes a folder and tries to write into it.

    Raises:
      StorageError: it cannot be made, or not be written to.
    """
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")


def claim(folder: str | os.PathLike[str]) -> IO[bytes]:
    """Makes a folder and holds it for this process, until the file is closed.

    The system gives it free when the process dies, however it does. Where there are no
    such locks (Windows, some file systems) nothing is held.

    Raises:
      StorageError: it cannot be made, or not be written to.
      ValueError: another process holds it.
    """
    with writing(folder):
        with contextlib.suppress(FileExistsError):  # a file, as which `open` tells it
            os.makedirs(folder)
        file = open(os.path.join(folder, ".lock"), "ab")  # noqa: SIM115
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise ValueError(
                f"{os.fspath(folder)} belongs to a run that is under way in another "
                "process; wait for it, stop it, or give another workdir"
            ) from None
    except ImportError:
        pass
    return file


def check_room(folder: str | os.PathLike[str], size: int) -> None:
    """Refuses to begin what would not end: a checkpoint for which there is no room.

    Args:
      folder: it is written to.
      size: bytes of its arrays.

    Raises:
      StorageError: less than that is free.
    """
    needed = SLACK[0] * size + SLACK[1]
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"cannot write a checkpoint into {os.fspath(folder)!r} (no space left: it "
            f"takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free)"
        )


def told(error: OSError) -> str:
    """One line for an error of the disk, '' for any other."""
    if isinstance(error, StorageError):
        return str(error)
    if error.errno not in CAUSES:
        return ""
    return f"cannot write {error.filename!r} ({error.strerror})"


@contextlib.contextmanager
def without_warning(text: str) -> Iterator[None]:
    """Keeps Orbax from logging, in the block, what is meant so."""
    logger = logging.getLogger("absl")

    def unlike(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger.addFilter(unlike)
    try:
        yield
    finally:
        logger.removeFilter(unlike)
