"""Reads named files from a folder or a tar archive, with errors that name the file.

Nothing is unpacked to disk, and byte counts are checked before a file is used.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError)
AGAIN = "the file is truncated or damaged: download it again"


class Blob(NamedTuple):
    """The content of a file, and its name for error messages."""

    content: bytes
    path: str


def read_members(
    folder: str | Path,
    sizes: Mapping[str, int | None],
    *,
    subfolder: str = "",
    archives: Sequence[str] = (),
) -> dict[str, Blob]:
    """Reads named files from a folder, its subfolder, or a tar archive in it.

    A file may be gzip-compressed as NAME.gz. Single files have priority over an
    archive. `folder` may be the path of the archive itself.

    Args:
      folder: where to look.
      sizes: name -> exact number of bytes expected, or None if the format defines it.
      subfolder: a folder inside `folder` that is searched too.
      archives: file names of tar archives (plain, gzip or xz) searched in `folder`.

    Returns:
      name -> Blob, for every name in `sizes`.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a file has another size, or its compression is broken.
    """
    try:
        folder = Path(folder).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder}: found no such home: {error}") from error
    if folder.is_file():
        return _read_archive(folder, sizes)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder, expected the one that holds "
            f"{_list(sizes)}; correct the path of the data folder"
        )
    found = {name: _loose(folder, subfolder, name) for name in sizes}
    if not any(found.values()):
        for archive in archives:
            if (folder / archive).is_file():
                return _read_archive(folder / archive, sizes)
    missing = [name for name, path in found.items() if path is None]
    if missing:
        there = sorted(p.name for p in folder.iterdir())
        wanted = f" or {' or '.join(archives)}" if archives else ""
        raise FileNotFoundError(
            f"{folder}: {_list(missing)} not found (the folder holds "
            f"{_list(there) or 'nothing'}), expected {_list(sizes)}{wanted}; "
            "put the original files there"
        )
    return {name: _read_file(path, sizes[name]) for name, path in found.items() if path}


def _list(names) -> str:
    names = list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _loose(folder: Path, subfolder: str, name: str) -> Path | None:
    for place in (folder, folder / subfolder):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _check_size(path: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise ValueError(f"{path}: found {found} bytes, expected {expected}; {AGAIN}")


def _read_file(path: Path, size: int | None) -> Blob:
    if path.suffix != ".gz":
        _check_size(str(path), path.stat().st_size, size)
        return Blob(path.read_bytes(), str(path))
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except _BROKEN as error:
        raise ValueError(
            f"{path}: found broken gzip data ({error}), expected a complete gzip file; "
            f"{AGAIN}"
        ) from error
    _check_size(str(path), len(content), size)
    return Blob(content, str(path))


def _read_archive(path: Path, sizes: Mapping[str, int | None]) -> dict[str, Blob]:
    """One pass over a tar archive; members are matched by their last name."""
    out: dict[str, Blob] = {}
    try:
        # "r|*" streams: a seek in an xz file would decompress it a second time.
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name not in sizes or name in out or not member.isfile():
                    continue
                shown = f"{path}:{member.name}"
                _check_size(shown, member.size, sizes[name])
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                _check_size(shown, len(content), member.size)
                out[name] = Blob(content, shown)
                if len(out) == len(sizes):
                    break
    except _BROKEN as error:
        raise ValueError(
            f"{path}: found a broken archive ({error}), expected a complete tar, "
            f"tar.gz or tar.xz; {AGAIN}"
        ) from error
    missing = [name for name in sizes if name not in out]
    if missing:
        raise FileNotFoundError(
            f"{path}: the archive holds no {_list(missing)}, expected {_list(sizes)}; "
            "this is the archive of another dataset or version (not the *binary* one)"
        )
    return out
