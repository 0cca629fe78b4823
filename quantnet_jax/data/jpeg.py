"""From an encoded image to uint8 pixels of one size: random resized or center crop.

Training: random resized crop ("Going Deeper with Convolutions", arXiv:1409.4842,
section 6), decoded no further than the crop needs. Evaluation: shorter side to 256,
then the center crop of 224; always from the whole image at full size, so that metrics
are comparable to published ones.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable

import numpy as np

from quantnet_jax.data import turbo
from quantnet_jax.data.turbo import Box, cover, shrinkage
from quantnet_jax.data.zips import open_image

_COUNTER = np.array([0, 0, 0, 1], np.uint64)
_LOCAL = threading.local()  # the generator of each thread
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR; Pillow widens it when it shrinks


LARGEST = 2**26
"""Pixels of an image, also where it is resized before a crop."""


def check_size(width: int, height: int) -> None:
    """Raises OSError, as for a damaged image, where it takes too much memory."""
    if width * height > LARGEST:
        raise OSError(f"{width} x {height} pixels, expected at most {LARGEST}")


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A random crop: area 8 to 100 %, aspect ratio 3/4 to 4/3 (log-uniform).

    Ten tries; then the largest centered box within the aspect ratios.

    Args:
      width, height: of the image, at least 1.
      rng: source of randomness.

    Returns:
      (left, top, width, height), inside the image.
    """
    for _ in range(10):
        area = width * height * (0.08 + 0.92 * rng.random())
        ratio = math.exp(math.log(4 / 3) * (2 * rng.random() - 1))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            return left, int(rng.random() * (height - h + 1)), w, h
    w = max(1, min(width, round(height * 4 / 3)))
    h = max(1, min(height, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


def training_box(width: int, height: int, seed: int, position: int) -> Box:
    """`random_box` as a function of seed and position."""
    if not hasattr(_LOCAL, "rng"):
        _LOCAL.rng = np.random.Generator(np.random.Philox(0))
    # Much faster than a new generator. The counter separates these numbers from those
    # of `order.permutation`.
    _LOCAL.rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"key": np.array([seed, position], np.uint64), "counter": _COUNTER},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # an empty buffer
        "has_uint32": 0,
        "uinteger": 0,
    }
    return random_box(width, height, _LOCAL.rng)


def decode(content: bytes, box: Callable[[int, int], Box], size: int) -> np.ndarray:
    """Decodes a box and resizes it (bilinear, antialiased), by `turbo` or Pillow.

    Args:
      content: an encoded image.
      box: `(width, height) -> (left, top, width, height)` inside the image.
      size: height and width of the result.

    Returns:
      uint8 [size, size, 3].

    Raises:
      OSError: the image is damaged.
    """

    def checked(width: int, height: int) -> Box:
        check_size(width, height)
        return box(width, height)

    out = turbo.decode(content, checked, size)
    return _decode(content, checked, size) if out is None else out


def _decode(content: bytes, box: Callable[[int, int], Box], size: int) -> np.ndarray:
    """What `turbo.decode` does, with Pillow, for every image that Pillow reads."""
    image = open_image(io.BytesIO(content))
    width, height = image.size
    chosen = box(width, height)
    shrink = shrinkage(chosen, size)
    image.draft("RGB", (max(1, width // shrink), max(1, height // shrink)))
    if image.size == (width, height):  # draft is for JPEGs only
        shrink = 1
    near, (left, top, w, h) = cover(chosen, shrink)
    image = image.convert("RGB").crop(near)
    inside = (left, top, left + w, top + h)
    return np.asarray(image.resize((size, size), _BILINEAR, inside))


def decode_train(content: bytes, size: int, *, seed: int, position: int) -> np.ndarray:
    """A random resized crop.

    Args:
      content: an encoded image.
      size: height and width of the result.
      seed, position: the randomness is a function of these two.

    Returns:
      uint8 [size, size, 3].

    Raises:
      OSError: the image is damaged.
    """
    return decode(content, lambda w, h: training_box(w, h, seed, position), size)


def decode_eval(content: bytes, size: int, resize: int) -> np.ndarray:
    """Decodes at full size, resizes the shorter side to `resize`, crops the center.

    Args:
      content: an encoded image.
      size: height and width of the result, at most `resize`.
      resize: length of the shorter side before the crop; 0: as it is.

    Returns:
      uint8 [size, size, 3].

    Raises:
      OSError: the image is damaged or too large.
    """
    image = open_image(io.BytesIO(content))
    check_size(*image.size)
    image, short = image.convert("RGB"), min(image.size)
    if not resize:
        return np.asarray(image)
    width, height = (resize * side // short for side in image.size)
    check_size(width, height)  # of a narrow image it may be huge
    image = image.resize((width, height), _BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
