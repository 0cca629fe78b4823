"""Paths of folders and buckets, and atomic writes: a reader sees the old content of a
file or the new one."""

import contextlib
import os
import pathlib
import tempfile
from typing import Any


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object of a bucket, such as 'gs://bucket/run'."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> Any:
    """A `pathlib.Path`; of a bucket an `etils.epath.Path`, which has the same methods.

    Raises:
      ImportError: it is of a bucket, whose packages are not installed.
    """
    if not in_bucket(path):
        return pathlib.Path(path)
    scheme = os.fspath(path).partition("://")[0]
    if scheme != "gs":
        raise ValueError(f"{os.fspath(path)}: expected a folder or gs://BUCKET/FOLDER")
    try:
        import gcsfs  # noqa: F401
        from etils import epath
    except ImportError as e:
        raise ImportError(
            f"{os.fspath(path)} needs gcsfs, which cannot be imported ({e}): pip "
            "install 'quantnet_jax[gcs]'"
        ) from e
    return epath.Path(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuses a place where no file can be written, before the work for it is done.

    Args:
      path: of a file or a folder, whose own folder may not exist yet.

    Raises:
      OSError: it names the path.
    """
    if in_bucket(path):
        return
    folder = pathlib.Path(path).absolute()
    folder = folder if folder.is_dir() else folder.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise OSError(e.errno, f"cannot write ({e.strerror})", os.fspath(path)) from e


def move(source: Any, target: Any) -> None:
    """Renames a folder; in a bucket its files are copied, then deleted."""
    if not in_bucket(source):
        os.rename(source, target)
        return
    for path in list(source.iterdir()):
        if path.is_dir():
            move(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
            path.unlink()


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Replaces the content of a file in one step, on the disk when this returns.

    Args:
      path: of the file; its folder must exist. In a bucket an object is replaced.
      data: bytes, or text that is written as UTF-8.

    Raises:
      OSError: it cannot be written; the old file is as it was, and nothing is left
        beside it.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "result.txt")
      ...     write_atomic(path, "one")
      ...     write_atomic(path, b"two")
      ...     path.read_text(), [x.name for x in path.parent.iterdir()]
      ('two', ['result.txt'])
    """
    target, data = as_path(path), data.encode() if isinstance(data, str) else data
    if in_bucket(path):
        target.write_bytes(data)
        return
    with staged(target, ".tmp") as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], mark: str):
    """Yields a path beside `path`, whose file takes its place if the block ends well.

    Otherwise the old file is as it was, and nothing is left beside it.

    Args:
      path: of a file on a disk.
      mark: what the name of the file beside it ends in.
    """
    target = pathlib.Path(path)
    partial = target.with_name(target.name + mark)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
