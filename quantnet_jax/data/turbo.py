"""The fast path from a JPEG to a crop: libjpeg-turbo, then a resize with SIMD.

The one file that knows simplejpeg (libjpeg-turbo) and cykooz_resizer (the resize of
Pillow, vectorized). Both are optional: without them `header` is None and `jpeg` takes
Pillow. Rows below the crop are not decoded, and a crop larger than what is wanted is
decoded at 1/2, 1/4 or 1/8 of its size.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential: rows come in order
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # markers of other things among those of frames
_LARGEST = 2**26  # pixels; what is larger may be damaged: Pillow has a limit
_SCAN, _END = 0xDA, b"\xff\xd9"


class Header(NamedTuple):
    """What is to be known of a JPEG before it is decoded.

    Attributes:
      width, height: of the picture, in pixels.
      place: where its height stands in the file (2 bytes, big endian), or None where
        the rows of the picture do not come one after another.
    """

    width: int
    height: int
    place: int | None


@functools.cache
def _packages() -> Any:
    """(simplejpeg, cykooz_resizer, options of the resize), or None."""
    try:
        import cykooz_resizer as resizer
        import simplejpeg
    except ImportError:
        return None
    # Bilinear over as many pixels as one of the result covers; without alpha.
    method = resizer.ResizeAlg.convolution(resizer.FilterType.bilinear)
    return simplejpeg, resizer, resizer.ResizeOptions(method, use_alpha=False)


def header(content: bytes) -> Header | None:
    """Reads the header of a JPEG that the fast path takes.

    Args:
      content: an encoded image of any kind.

    Returns:
      None where Pillow is to be asked: the packages are not installed, or this is no
      JPEG, not grey or YCbCr, of an odd subsampling, or without its end.
    """
    packages = _packages()
    if packages is None or not content.endswith(_END):
        return None
    try:
        height, width, colours, _ = packages[0].decode_jpeg_header(content)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or width * height > _LARGEST:
        return None
    return Header(int(width), int(height), _place_of_height(content, int(height)))


def _place_of_height(content: bytes, height: int) -> int | None:
    """See `Header.place`."""
    at = 2  # behind the marker of the start
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a byte of filling
            at += 1
        elif marker in _FRAMES:
            found = int.from_bytes(content[at + 5 : at + 7], "big")
            return at + 5 if found == height else None
        elif marker == _SCAN or (marker & 0xF0 == 0xC0 and marker not in _NOT_FRAMES):
            return None
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def crop(
    content: bytes | bytearray,
    head: Header,
    box: tuple[int, int, int, int],
    shrink: int,
    size: int,
) -> np.ndarray | None:
    """Decodes what is needed for a box and resizes it (bilinear, antialiased).

    Args:
      content: an encoded image with the header `head`.
      head: of `header`.
      box: (left, top, width, height) of the crop, inside the image.
      shrink: 1, 2, 4 or 8: decode at 1 / shrink of the size.
      size: height and width of the result.

    Returns:
      uint8 [size, size, 3], or None where libjpeg fails: Pillow is to say why.
    """
    left, top, width, height = box
    # At 1 / shrink a row is made of `shrink` rows, all of which must be there.
    rows = min(head.height, -(-(top + height) // shrink) * shrink)
    if head.place is None:
        rows = head.height
    elif rows < head.height:
        content = bytearray(content)
        content[head.place : head.place + 2] = rows.to_bytes(2, "big")
    # What the box touches; the pixels around it are let go before the resize.
    near = (slice(top // shrink, -(-(top + height) // shrink)),
            slice(left // shrink, -(-(left + width) // shrink)))  # fmt: skip
    pixels = _decode(content, (rows, head.width), shrink, near)
    if pixels is None:
        return None
    inside = None
    if shrink > 1:
        inside = (left % shrink, top % shrink, width, height)
        inside = tuple(x / shrink for x in inside)
    return _resize(*pixels, inside, size)


def _decode(content: bytes | bytearray, shape, shrink: int, near):
    """(Pixels, (height, width)) of a part, or None where libjpeg fails."""
    simplejpeg, _, _ = _packages()
    height, width = (-(-length // shrink) for length in shape)
    limits = {}
    if shrink > 1:
        limits = dict(min_height=height, min_width=width, min_factor=shrink)
    # Colours that were stored at half the size are repeated, not interpolated. As in
    # Pillow it is no error that bytes are left over, here those of the rows cut off.
    try:
        pixels = simplejpeg.decode_jpeg(
            content, "RGB", fastupsample=True, strict=False, **limits
        )
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    pixels = pixels[near]
    return pixels.tobytes(), pixels.shape[:2]


def _resize(pixels: bytes, shape: tuple[int, int], box, size: int) -> np.ndarray:
    """The box (left, top, width, height; all for None) of RGB pixels, resized."""
    _, resizer, options = _packages()
    if box is not None:
        options = options.copy()
        options.crop_box = resizer.CropBox(*box)
    height, width = shape
    kind = resizer.PixelType.U8x3
    source = resizer.ImageData(width, height, kind, pixels)
    result = resizer.ImageData(size, size, kind)
    resizer.Resizer().resize(source, result, options)  # one cannot serve two threads
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)
