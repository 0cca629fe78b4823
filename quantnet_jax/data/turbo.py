"""The fast path from a JPEG to a crop: libjpeg-turbo and a vectorized resize.

The only file that knows libturbojpeg (version 3, through ctypes: the library of the
system or of the package turbojpeg) and cykooz_resizer (Pillow's resize with SIMD). Only
the blocks under the crop are decoded, and a crop larger than the result is decoded at
1/2, 1/4 or 1/8 of its size.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Box = tuple[int, int, int, int]

_LARGEST = 2**26  # pixels; a larger image may be damaged: Pillow has a limit
_END = b"\xff\xd9"
_NAMES = ("libturbojpeg.so.0", "libturbojpeg.0.dylib")
# TJINIT_, TJPF_ and four of TJPARAM_.
_DECOMPRESS, _RGB = 1, 0
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLORSPACE = 4, 5, 6, 8
_COLORSPACES = (1, 2)  # of TJCS_: YCbCr, GRAY
# Columns of a block of each TJSAMP_: 444, 422, 420, GRAY, 440, 411, 441.
_BLOCKS = (8, 16, 16, 8, 8, 32, 8)
_LOCAL = threading.local()  # the buffers of each thread: a decoder, a resizer


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Factor(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


_WHOLE = _Region(0, 0, 0, 0)
_CALLS = {
    "tj3Init": (ctypes.c_int,),
    "tj3Destroy": (ctypes.c_void_p,),
    "tj3Get": (ctypes.c_void_p, ctypes.c_int),
    "tj3GetErrorCode": (ctypes.c_void_p,),
    "tj3DecompressHeader": (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
    "tj3SetScalingFactor": (ctypes.c_void_p, _Factor),
    "tj3SetCroppingRegion": (ctypes.c_void_p, _Region),
    "tj3Decompress8": (
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    ),
}


class _Packages(NamedTuple):
    """What the fast path needs: libturbojpeg, cykooz_resizer, options of a resize."""

    turbo: Any
    resizer: Any
    options: Any


@functools.cache
def packages() -> _Packages | None:
    """The packages of the fast path, or None where one is missing."""
    turbo = _library()
    try:
        import cykooz_resizer as resizer
    except ImportError:
        return None
    if turbo is None:
        return None
    # Bilinear over as many pixels as one of the result covers; without alpha.
    method = resizer.ResizeAlg.convolution(resizer.FilterType.bilinear)
    return _Packages(turbo, resizer, resizer.ResizeOptions(method, use_alpha=False))


def _paths() -> Iterator[str]:
    """Candidate paths of the library."""
    yield from _NAMES
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libturbojpeg"):
            yield str(file.locate())


def _library() -> Any:
    """The library with the types of `_CALLS`, or None."""
    for path in _paths():
        try:
            library = ctypes.CDLL(path)
            for name, types in _CALLS.items():
                getattr(library, name).argtypes = types
        except (OSError, AttributeError):  # missing, or of version 2
            continue
        library.tj3Init.restype = ctypes.c_void_p
        library.tj3Destroy.restype = None
        return library
    return None


def decode(
    content: bytes, box: Callable[[int, int], Box], size: int
) -> np.ndarray | None:
    """Decodes a box of a JPEG and resizes it (bilinear, antialiased).

    Args:
      content: an encoded image of any kind.
      box: `(width, height) -> (left, top, width, height)` inside the image.
      size: height and width of the result.

    Returns:
      uint8 [size, size, 3], or None where the caller has to fall back to Pillow: a
      package is missing, or the image is damaged, too large, or neither a gray nor a
      YCbCr JPEG.
    """
    decoder = read(content)
    if decoder is None:
        return None
    chosen = box(decoder.width, decoder.height)
    shrink = shrinkage(chosen, size)
    near, inside = cover(chosen, shrink)
    pixels = decoder.region(content, near, shrink)
    return None if pixels is None else _resize(pixels, inside, size)


def shrinkage(box: Box, size: int) -> int:
    """The factor 1, 2, 4 or 8 by which to decode a box smaller, at a lower cost.

    The largest at which the shorter side of the box retains `size` pixels.
    """
    return 1 << min(3, max(1, min(box[2:]) // size).bit_length() - 1)


def cover(box: Box, shrink: int) -> tuple[Box, tuple[float, ...]]:
    """The pixels that a box touches in an image decoded at 1 / `shrink`.

    Args:
      box: (left, top, width, height) at full size.
      shrink: 1, 2, 4 or 8.

    Returns:
      (left, top, right, bottom) of the pixels, and the (left, top, width, height) of
      the box among them.
    """
    left, top, width, height = box
    right, bottom = -(-(left + width) // shrink), -(-(top + height) // shrink)
    inside = (left % shrink, top % shrink, width, height)
    near = (left // shrink, top // shrink, right, bottom)
    return near, tuple(x / shrink for x in inside)


class Decoder:
    """A decoder of libturbojpeg, freed with the thread that created it.

    Attributes:
      width, height: of the image whose header it read last.
    """

    def __init__(self, library: Any):
        self._library = library
        self._handle = library.tj3Init(_DECOMPRESS)
        self._pixels = np.empty(0, np.uint8)
        self.width = self.height = 0

    def __del__(self):
        self._library.tj3Destroy(self._handle)

    def read_header(self, content: bytes) -> bool | None:
        """Whether `region` takes the image; None where the decoder failed."""
        library, get = self._library, self._library.tj3Get
        # Reset the region first: it may not fit the next image.
        library.tj3SetCroppingRegion(self._handle, _WHOLE)
        if library.tj3DecompressHeader(self._handle, content, len(content)):
            return None
        self.width, self.height = get(self._handle, _WIDTH), get(self._handle, _HEIGHT)
        return (
            0 <= get(self._handle, _SUBSAMPLING) < len(_BLOCKS)
            and get(self._handle, _COLORSPACE) in _COLORSPACES
            and self.width * self.height <= _LARGEST
        )

    def region(self, content: bytes, near: Box, shrink: int) -> np.ndarray | None:
        """The pixels of a part of the image, with the bits of the whole one.

        Args:
          content: the image of `read_header`.
          near: (left, top, right, bottom) of the part in the image at 1 / `shrink`.
          shrink: 1, 2, 4 or 8: decode at 1 / shrink of the size.

        Returns:
          uint8 [bottom - top, right - left, 3], valid until the thread decodes again;
          None where the library fails.
        """
        library, handle = self._library, self._handle
        left, top, right, bottom = near
        # Regions begin at a block. Chroma stored at half the size is interpolated, for
        # which the columns to the left and to the right are decoded, too.
        block = -(-_BLOCKS[library.tj3Get(handle, _SUBSAMPLING)] // shrink)
        first = max(0, left - 1) // block * block
        last = min(-(-self.width // shrink), right + 2)
        region = _Region(first, top, last - first, bottom - top)
        needed = region.w * region.h * 3
        if self._pixels.size < needed:
            self._pixels = np.empty(needed, np.uint8)
        arguments = content, len(content), self._pixels.ctypes.data, 0, _RGB
        if (
            library.tj3SetScalingFactor(handle, _Factor(1, shrink))
            or library.tj3SetCroppingRegion(handle, region)
            # As in Pillow, a warning of the library is no error.
            or (
                library.tj3Decompress8(handle, *arguments)
                and library.tj3GetErrorCode(handle)
            )
        ):
            del _LOCAL.decoder  # its state is in doubt
            return None
        pixels = self._pixels[:needed].reshape(region.h, region.w, 3)
        return pixels[:, left - first : right - first]


def read(content: bytes) -> Decoder | None:
    """The decoder of this thread, with the header of an image that it takes."""
    found = packages()
    if found is None or not content.endswith(_END):  # a truncated file is no warning
        return None
    if not hasattr(_LOCAL, "decoder"):
        _LOCAL.decoder = Decoder(found.turbo)
    taken = _LOCAL.decoder.read_header(content)
    if taken is None:
        del _LOCAL.decoder  # its state is in doubt
    return _LOCAL.decoder if taken else None


def _resize(pixels: np.ndarray, box, size: int) -> np.ndarray:
    """The box (left, top, width, height) of RGB pixels, resized."""
    _, resizer, options = packages()  # pyright: ignore[reportGeneralTypeIssues]
    options = options.copy()
    options.crop_box = resizer.CropBox(*box)
    height, width = pixels.shape[:2]
    kind = resizer.PixelType.U8x3
    source = resizer.ImageData(width, height, kind, pixels.tobytes())
    if getattr(_LOCAL, "size", 0) != size:
        _LOCAL.result = resizer.ImageData(size, size, kind)
        _LOCAL.size, _LOCAL.resizer = size, resizer.Resizer()
    _LOCAL.resizer.resize(source, _LOCAL.result, options)
    return np.frombuffer(_LOCAL.result.get_buffer(), np.uint8).reshape(size, size, 3)
