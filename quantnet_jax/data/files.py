"""Reads named files from a folder or a tar archive, with errors that name the file.

Nothing is unpacked to disk. What is read is bounded by the size that the format or the
header of a file says, whatever a compressed file would unpack to.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Size = int | Callable[[bytes, str], int]
"""Bytes of a file, or `(its first bytes, its path) -> bytes`."""

_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError)
AGAIN = "the file is truncated or damaged: download it again"
HEAD = 16
"""First bytes of a file that say its size."""
LARGEST = 2**29
"""Bytes of a file; the largest of MNIST's kind has 47 MB."""
LARGEST_ARCHIVE = 2**28
"""Bytes that an archive unpacks to; CIFAR's has 184 MB."""


class Blob(NamedTuple):
    """The content of a file, and its name for error messages."""

    content: bytes
    path: str


def read_members(
    folder: Any,
    sizes: Mapping[str, Size],
    *,
    subfolder: str = "",
    archives: Sequence[str] = (),
) -> dict[str, Blob]:
    """Reads named files from a folder, its subfolder, or a tar archive in it.

    A file NAME-idx3-ubyte may also be NAME.idx3-ubyte, have '.gz' behind, compressed or
    not, or be in a folder of its own name. Single files have priority over an archive.
    `folder` may be the path of the archive itself.

    Args:
      folder: where to look; a path object may be of a bucket.
      sizes: name -> bytes expected.
      subfolder: a folder inside `folder` that is searched too.
      archives: file names of tar archives (plain, gzip or xz) searched in `folder`.

    Returns:
      name -> Blob, for every name in `sizes`.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a file has another size, or its compression is broken.
    """
    folder = as_folder(folder)
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


def as_folder(folder: Any) -> Any:
    """A path object, '~' expanded; one that is given, perhaps of a bucket, stays.

    Raises:
      FileNotFoundError: there is no such home.
    """
    if not isinstance(folder, str | Path):
        return folder
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder}: found no such home: {error}") from error


def _list(names) -> str:
    names = list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _spellings(name: str) -> Iterator[str]:
    for spelled in dict.fromkeys((name, name.replace("-idx", ".idx"))):
        yield from (spelled, f"{spelled}.gz")


def _loose(folder: Any, subfolder: str, name: str) -> Any:
    for place in (folder, folder / subfolder):
        spelled = [place / spelling for spelling in _spellings(name)]
        own = [path for path in spelled if path.is_dir()]  # as some tools unpack
        spelled += [path / spelling for path in own for spelling in _spellings(name)]
        if files := [path for path in spelled if path.is_file()]:
            return files[0]
    return None


def _read(stream: Any, size: Size, path: str) -> bytes:
    """The content of a stream, which has to have that size."""
    head = stream.read(HEAD)
    expected = size if isinstance(size, int) else size(head, path)
    if expected > LARGEST:
        raise ValueError(
            f"{path}: its header says {expected} bytes, expected at most {LARGEST}; "
            "this is another file"
        )
    content = head + stream.read(max(0, expected + 1 - len(head)))
    if (found := len(content)) != expected:
        more = f"more than {expected}" if found > expected else found
        raise ValueError(f"{path}: found {more} bytes, expected {expected}; {AGAIN}")
    return content


def _read_file(path: Any, size: Size) -> Blob:
    with path.open("rb") as file:
        # By content: some browsers unpack what they download, and keep the '.gz'.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return Blob(_read(file, size, str(path)), str(path))
        try:
            with gzip.open(file) as stream:
                return Blob(_read(stream, size, str(path)), str(path))
        except _BROKEN as error:
            raise ValueError(
                f"{path}: found broken gzip data ({error}), expected a complete gzip "
                f"file; {AGAIN}"
            ) from error


class _Bounded:
    """A stream that ends with an error where it is longer than an archive may be."""

    def __init__(self, stream: Any, path: str):
        self._stream, self._path, self._left = stream, path, LARGEST_ARCHIVE

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise ValueError(
                f"{self._path}: the archive unpacks to more than {LARGEST_ARCHIVE} "
                "bytes; this is another file"
            )
        return found


def _unpacked(file: Any) -> Any:
    magic = file.read(6)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(file)
    return lzma.open(file) if magic == b"\xfd7zXZ\x00" else file


def _read_archive(path: Any, sizes: Mapping[str, Size]) -> dict[str, Blob]:
    """One pass over a tar archive; members are matched by their last name."""
    out: dict[str, Blob] = {}
    named = {spelled: name for name in sizes for spelled in _spellings(name)}
    try:
        with path.open("rb") as file:
            # "r|" streams: a seek in an xz file would decompress it a second time.
            bounded: Any = _Bounded(_unpacked(file), str(path))
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    name = named.get(member.name.rsplit("/", 1)[-1])
                    if name is None or name in out or not member.isfile():
                        continue
                    shown, stream = f"{path}:{member.name}", archive.extractfile(member)
                    out[name] = Blob(_read(stream, sizes[name], shown), shown)
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
