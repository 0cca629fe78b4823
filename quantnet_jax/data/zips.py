"""Reads members of zip archives, images among them, with errors that name the member.

Sizes are checked before anything is decompressed or decoded.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from quantnet_jax.data.files import one_line, shown

T = TypeVar("T")
LARGEST = 2**26
"""Bytes of a member."""


def unzip(
    path: Any,
    wanted: Callable[[str], bool],
    decode: Callable[[BinaryIO], T],
    expected: str,
    largest: int = LARGEST,
) -> dict[str, T]:
    """What `decode` makes of the members of a zip archive, sorted by name.

    Args:
      path: of the archive.
      wanted: `name -> whether` it is read.
      decode: of a member; may raise anything.
      expected: in words, for messages.
      largest: bytes of a member.

    Raises:
      ValueError: the archive or a member is damaged or too large, or none is wanted.
    """
    found, where = {}, shown(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda x: x.filename):
                if not wanted(info.filename):
                    continue
                where = shown(f"{path}:{info.filename}")
                if info.file_size > largest:
                    raise ValueError(f"{info.file_size} bytes, more than {largest}")
                with archive.open(info) as file:
                    found[info.filename] = decode(io.BytesIO(file.read()))
    except Exception as error:  # zipfile and decoders document no list of them
        raise ValueError(f"{where}: {one_line(error)}; expected {expected}") from None
    if not found:
        raise ValueError(f"{where}: found none of its kind, expected {expected}")
    return found


def open_image(file: BinaryIO, formats: tuple[str, ...] | None = None) -> Any:
    """An image of PIL, not yet decoded.

    Raises:
      OSError: it is damaged, or of none of the formats.
    """
    from PIL import Image, UnidentifiedImageError  # here: few datasets need a decoder

    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        known = " or ".join(formats) if formats else "a known format"
        raise OSError(f"no image of {known}") from None


def image_reader(side: int, pixels: int) -> Callable[[BinaryIO], Any]:
    """A function that decodes PNG and JPEG images with PIL, for `unzip`.

    Args:
      side: pixels of the longer one.
      pixels: of all images that the function is called with.
    """
    left = pixels

    def read(file: BinaryIO) -> Any:
        nonlocal left
        image = open_image(file, ("PNG", "JPEG"))
        width, height = image.size
        left -= width * height
        if max(width, height) > side or left < 0:
            raise ValueError(
                f"{width} x {height} pixels, at most {side} a side, {pixels} in all"
            )
        image.load()
        return image

    return read
