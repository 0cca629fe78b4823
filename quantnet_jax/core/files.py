"""Atomic writes: a reader sees the old content of a file or the new one."""

import contextlib
import os
import pathlib


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Replaces the content of a file in one step, on the disk when this returns.

    Args:
      path: of the file; its folder must exist.
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
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
