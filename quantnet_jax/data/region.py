"""Decodes a part of a JPEG, and no more, by the library libturbojpeg.

The one file that knows its interface of version 3 (`tj3SetCroppingRegion`), through
ctypes. The library is that of the system or of the package turbojpeg; without one
`decode` is None and `turbo` decodes all columns.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_NAMES = ("libturbojpeg.so.0", "libturbojpeg.0.dylib")
# TJINIT_, TJPF_ and four of TJPARAM_.
_DECOMPRESS, _RGB = 1, 0
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLOURS = 4, 5, 6, 8
_TAKEN = (1, 2)  # of TJCS_: YCbCr, GRAY
# Columns of a block of each TJSAMP_: 444, 422, 420, GRAY, 440, 411, 441.
_BLOCKS = (8, 16, 16, 8, 8, 32, 8)
# Kept by each thread: its decoder and the pixels that this fills.
_KEPT = threading.local()


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


def _paths() -> Iterator[str]:
    """Where the library may be."""
    yield from _NAMES
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libturbojpeg"):
            yield str(file.locate())


@functools.cache
def _library() -> Any:
    """The library with the types of `_CALLS`, or None."""
    for path in _paths():
        try:
            library = ctypes.CDLL(path)
            for name, types in _CALLS.items():
                getattr(library, name).argtypes = types
        except (OSError, AttributeError):  # not there, or of version 2
            continue
        library.tj3Init.restype = ctypes.c_void_p
        library.tj3Destroy.restype = None
        return library
    return None


class _Decoder:
    """A decoder of the library, given back with the thread that made it."""

    def __init__(self, library: Any):
        self._destroy = library.tj3Destroy
        self.handle = library.tj3Init(_DECOMPRESS)
        self.content: bytes | None = None  # whose header it has read
        self.pixels = np.empty(0, np.uint8)

    def __del__(self):
        self._destroy(self.handle)


def _read(library: Any, content: bytes) -> _Decoder | None:
    """The decoder of this thread, with the header of a JPEG that it takes."""
    if not hasattr(_KEPT, "decoder"):
        _KEPT.decoder = _Decoder(library)
    decoder = _KEPT.decoder
    if decoder.content is not content:
        decoder.content = None
        # A region is forgotten before the next picture, which it may not fit.
        library.tj3SetCroppingRegion(decoder.handle, _WHOLE)
        if library.tj3DecompressHeader(decoder.handle, content, len(content)):
            del _KEPT.decoder  # what it remembers is in doubt
            return None
        subsampling = library.tj3Get(decoder.handle, _SUBSAMPLING)
        if not 0 <= subsampling < len(_BLOCKS):
            return None
        if library.tj3Get(decoder.handle, _COLOURS) not in _TAKEN:
            return None
        decoder.content = content
    return decoder


def size(content: bytes) -> tuple[int, int] | None:
    """(Width, height) of a JPEG that `decode` takes; else, or without library, None."""
    if (library := _library()) is None or (decoder := _read(library, content)) is None:
        return None
    get = functools.partial(library.tj3Get, decoder.handle)
    return get(_WIDTH), get(_HEIGHT)


def decode(
    content: bytes, near: tuple[int, int, int, int], shrink: int
) -> np.ndarray | None:
    """The pixels of a part of a picture, as if cut from the whole.

    Args:
      content: an encoded image of any kind.
      near: (left, top, right, bottom) of the part, inside the picture at 1 / `shrink`.
      shrink: 1, 2, 4 or 8: decode at 1 / shrink of the size.

    Returns:
      uint8 [bottom - top, right - left, 3], valid until the thread decodes again; None
      where there is no library, or it does not take the image or fails.
    """
    if (library := _library()) is None or (decoder := _read(library, content)) is None:
        return None
    handle, get = decoder.handle, library.tj3Get
    left, top, right, bottom = near
    # Regions begin with a block. Colours stored at half the size are interpolated, for
    # which the pixels to the left and to the right are decoded, too.
    block = -(-_BLOCKS[get(handle, _SUBSAMPLING)] // shrink)
    first = max(0, left - 1) // block * block
    last = min(-(-get(handle, _WIDTH) // shrink), right + 2)
    region = _Region(first, top, last - first, bottom - top)
    needed = region.w * region.h * 3
    if decoder.pixels.size < needed:
        decoder.pixels = np.empty(needed, np.uint8)
    address = decoder.pixels.ctypes.data
    given = content, len(content), address, 0, _RGB
    if (
        library.tj3SetScalingFactor(handle, _Factor(1, shrink))
        or library.tj3SetCroppingRegion(handle, region)
        # As in Pillow, what the library only warns of is no error.
        or (library.tj3Decompress8(handle, *given) and library.tj3GetErrorCode(handle))
    ):
        del _KEPT.decoder
        return None
    pixels = decoder.pixels[:needed].reshape(region.h, region.w, 3)
    return pixels[:, left - first : right - first]
