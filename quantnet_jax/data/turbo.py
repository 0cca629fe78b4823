"""The fast path from a JPEG to a crop: libjpeg-turbo, then a resize with SIMD.

The one file that knows simplejpeg (libjpeg-turbo) and cykooz_resizer (the resize of
Pillow, vectorized). Both are optional: without them `header` is None and `jpeg` takes
Pillow. Rows below the crop are not decoded, with `region` nor are the columns beside it
and the rows above, and a crop larger than what is wanted is decoded at 1/2, 1/4 or 1/8
of its size.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple

import numpy as np

from quantnet_jax.data import region

_LARGEST = 2**26  # pixels; what is larger may be damaged: Pillow has a limit
_END = b"\xff\xd9"
# How the frame of a baseline JPEG begins, before its height: marker, length, bits.
_FRAMES = {"YCbCr": b"\xff\xc0\x00\x11\x08", "Gray": b"\xff\xc0\x00\x0b\x08"}
# The resizer and the image it fills, kept by each thread: they hold memory.
_KEPT = threading.local()


class Header(NamedTuple):
    """What is to be known of a JPEG before it is decoded.

    Attributes:
      width, height: of the picture, in pixels.
      place: where its height stands in the file (2 bytes, big endian), or None where
        the rows of the picture do not come one after another or `region` skips them.
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
    size = region.size(content)
    if size is not None and size[0] * size[1] <= _LARGEST:
        return Header(*size, None)
    try:
        height, width, colours, _ = packages[0].decode_jpeg_header(content)
    except ValueError:
        return None
    frame = _FRAMES.get(colours)
    if frame is None or width * height > _LARGEST:
        return None
    frame += height.to_bytes(2, "big") + width.to_bytes(2, "big")
    at = content.find(frame)
    return Header(width, height, None if at < 0 else at + 5)


def crop(
    content: bytes,
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
    # What the box touches.
    right, bottom = -(-(left + width) // shrink), -(-(top + height) // shrink)
    near = (left // shrink, top // shrink, right, bottom)
    pixels = region.decode(content, near, shrink)
    if pixels is None:
        pixels = _decode(content, head, near, shrink)
    if pixels is None:
        return None
    inside = None
    if shrink > 1:
        inside = (left % shrink, top % shrink, width, height)
        inside = tuple(x / shrink for x in inside)
    return _resize(pixels.tobytes(), pixels.shape[:2], inside, size)


def _decode(content: bytes, head: Header, near, shrink: int) -> np.ndarray | None:
    """What `region.decode` does, of all columns and of the rows above, too."""
    simplejpeg, _, _ = _packages()
    left, top, right, bottom = near
    # At 1 / shrink a row is made of `shrink` rows, all of which must be there.
    rows = min(head.height, bottom * shrink)
    given: bytes | bytearray = content
    if head.place is None:
        rows = head.height
    elif rows < head.height:
        given = bytearray(content)
        given[head.place : head.place + 2] = rows.to_bytes(2, "big")
    height, width = (-(-length // shrink) for length in (rows, head.width))
    limits = {}
    if shrink > 1:
        limits = dict(min_height=height, min_width=width, min_factor=shrink)
    # Colours that were stored at half the size are repeated, not interpolated. As in
    # Pillow it is no error that bytes are left over, here those of the rows cut off.
    try:
        pixels = simplejpeg.decode_jpeg(
            given, "RGB", fastupsample=True, strict=False, **limits
        )
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels[top:bottom, left:right]


def _resize(pixels: bytes, shape: tuple[int, int], box, size: int) -> np.ndarray:
    """The box (left, top, width, height; all for None) of RGB pixels, resized."""
    _, resizer, options = _packages()
    if box is not None:
        options = options.copy()
        options.crop_box = resizer.CropBox(*box)
    height, width = shape
    kind = resizer.PixelType.U8x3
    source = resizer.ImageData(width, height, kind, pixels)
    if getattr(_KEPT, "size", 0) != size:
        _KEPT.result = resizer.ImageData(size, size, kind)
        _KEPT.size, _KEPT.resizer = size, resizer.Resizer()
    result = _KEPT.result
    _KEPT.resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)
