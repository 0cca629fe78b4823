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

_BROKEN = (
    *(EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError),
    *(OverflowError, RecursionError),
)
AGAIN = "the file is truncated or damaged: download it again"
HEAD = 16
"""First bytes of a file that say its size."""
LARGEST = 2**28
"""Bytes of a file, and those that a tar archive unpacks to; CIFAR's has 184 MB."""
HEADERS, LARGEST_HEADER, ALL_HEADERS = 10_000, 2**11, 2**20
"""Headers of a tar archive, bytes of a long one and of all long ones: `tarfile` takes a
time quadratic in the bytes of one."""
_LONG = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class Blob(NamedTuple):
    """The content of a file, and its name for error messages."""

    content: bytes | memoryview
    path: str


def shown(name: Any) -> str:
    """A name for messages: as it is, or escaped where it is not printable."""
    return text if (text := str(name)).isprintable() else ascii(text)


def one_line(error: BaseException) -> str:
    """Type and message of an error, in at most 200 printable characters."""
    return shown(" ".join(f"{type(error).__name__}: {error}".split())[:200])


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
            f"{shown(folder)}: no such folder, expected the one that holds "
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
            f"{shown(folder)}: {_list(missing)} not found (the folder holds "
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
        raise FileNotFoundError(f"{shown(folder)}: found no such home") from error


def _list(names) -> str:
    names = list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(map(shown, names[:6])) + more


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


def _read(stream: Any, size: Size, path: str) -> memoryview:
    """The content of a stream, which has to have that size."""
    head = stream.read(HEAD)
    expected = size if isinstance(size, int) else size(head, path)
    if expected > LARGEST:
        raise ValueError(
            f"{path}: its header says {expected} bytes, expected at most {LARGEST}; "
            "this is another file"
        )
    content = bytearray(head)  # grown in place: one copy, of what there is
    while more := stream.read(min(2**20, max(0, expected + 1 - len(content)))):
        content += more
    if (found := len(content)) != expected:
        more = f"more than {expected}" if found > expected else found
        raise ValueError(f"{path}: found {more} bytes, expected {expected}; {AGAIN}")
    return memoryview(content).toreadonly()


def _read_file(path: Any, size: Size) -> Blob:
    where = shown(path)
    with path.open("rb") as file:
        # By content: some browsers unpack what they download, and keep the '.gz'.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return Blob(_read(file, size, where), where)
        try:
            with gzip.open(file) as stream:
                return Blob(_read(stream, size, where), where)
        except _BROKEN as error:
            raise ValueError(
                f"{where}: found broken gzip data ({error}), expected a complete gzip "
                f"file; {AGAIN}"
            ) from error


class _Bounded:
    """A stream that ends with an error where it is longer than an archive may be."""

    def __init__(self, stream: Any):
        self._stream, self._left = stream, LARGEST

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {LARGEST} bytes")
        return found


def _header() -> type[tarfile.TarInfo]:
    """The type of the headers of one archive: few, short, and of whole files."""
    count = total = 0

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf, encoding, errors):
            nonlocal count, total
            found = super().frombuf(buf, encoding, errors)
            size = found.size if found.type in _LONG else 0
            count, total = count + 1, total + size
            if count > HEADERS or size > LARGEST_HEADER or total > ALL_HEADERS:
                raise tarfile.ReadError("more or longer headers than of images")
            if found.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.ReadError("a file with holes")
            return found

        @classmethod
        def fromtarfile(cls, tarfile):
            try:
                return super().fromtarfile(tarfile)
            except ValueError as error:  # of numbers in long headers
                raise OverflowError(str(error)) from None

        def _proc_gnusparse_10(self, *_):
            raise tarfile.ReadError("a file with holes")

    return Header


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
    where = shown(path)
    try:
        with path.open("rb") as file:
            # "r|" streams: a seek in an xz file would decompress it a second time.
            bounded: Any = _Bounded(_unpacked(file))
            header = _header()
            with tarfile.open(fileobj=bounded, mode="r|", tarinfo=header) as archive:
                for member in archive:
                    name = named.get(member.name.rsplit("/", 1)[-1])
                    if name is None or name in out or not member.isfile():
                        continue
                    stream = archive.extractfile(member)
                    place = shown(f"{path}:{member.name}")
                    out[name] = Blob(_read(stream, sizes[name], place), place)
                    if len(out) == len(sizes):
                        break
    except _BROKEN as error:
        raise ValueError(
            f"{where}: found a broken archive ({error}), expected a complete tar, "
            f"tar.gz or tar.xz; {AGAIN}"
        ) from error
    missing = [name for name in sizes if name not in out]
    if missing:
        raise FileNotFoundError(
            f"{where}: the archive holds no {_list(missing)}, expected {_list(sizes)}; "
            "this is the archive of another dataset or version (not the *binary* one)"
        )
    return out
