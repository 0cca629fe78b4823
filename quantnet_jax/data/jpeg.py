"""From an encoded image to uint8 pixels of one size: random resized or centre crop.

Training: random resized crop ("Going Deeper with Convolutions", arXiv:1409.4842,
section 6), decoded no further than the crop needs. Evaluation: shorter side to 256,
then the centre crop of 224; always from the whole picture at full size, so that scores
can be compared with those of others.
"""

from __future__ import annotations

import io
import math
import threading

import numpy as np

from quantnet_jax.data import turbo

_COUNTER = np.array([0, 0, 0, 1], np.uint64)
_KEPT = threading.local()  # the generator of each thread
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR; Pillow widens it when it shrinks


def random_box(
    width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop: area 8 to 100 %, aspect ratio 3/4 to 4/3 (log-uniform).

    Ten tries; then the largest centred box within the aspect ratios.

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


def _open(content: bytes):
    from PIL import Image  # only streamed sets need Pillow

    return Image.open(io.BytesIO(content))


def decode_train(content: bytes, size: int, *, seed: int, position: int) -> np.ndarray:
    """Decodes, takes a random box and resizes it (bilinear, antialiased).

    By `turbo` if it takes the image, else by Pillow; the box is the same.

    Args:
      content: an encoded image.
      size: height and width of the result.
      seed, position: the randomness is a function of these two.

    Returns:
      uint8 [size, size, 3].

    Raises:
      OSError: the image is broken.
    """
    head = turbo.header(content)
    if head is not None:
        box = _box(head.width, head.height, seed, position)
        out = turbo.crop(content, head, box, _shrink(box, size), size)
        if out is not None:
            return out
    image = _open(content)
    return _crop(image, _box(*image.size, seed, position), size)


def _box(width: int, height: int, seed: int, position: int):
    """`random_box` as a function of seed and position."""
    if not hasattr(_KEPT, "rng"):
        _KEPT.rng = np.random.Generator(np.random.Philox(0))
    # Much faster than a new generator. The counter keeps these numbers apart from those
    # of `stream.permutation`.
    _KEPT.rng.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"key": np.array([seed, position], np.uint64), "counter": _COUNTER},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # nothing is left in it
        "has_uint32": 0,
        "uinteger": 0,
    }
    return random_box(width, height, _KEPT.rng)


def _shrink(box, size: int) -> int:
    """By what (1, 2, 4, 8) to decode a box smaller at a fraction of the cost.

    Only as far as the box keeps `size` pixels on its shorter side.
    """
    return 1 << min(3, max(1, min(box[2:]) // size).bit_length() - 1)


def _crop(image, box, size: int) -> np.ndarray:
    """What `turbo.crop` does, with Pillow."""
    width, height = image.size
    shrink = _shrink(box, size)
    image.draft("RGB", (max(1, width // shrink), max(1, height // shrink)))
    if image.size == (width, height):  # draft is for JPEGs only
        shrink = 1
    left, top, w, h = box
    right, bottom = -(-(left + w) // shrink), -(-(top + h) // shrink)
    image = image.convert("RGB").crop((left // shrink, top // shrink, right, bottom))
    # The box in the cropped image.
    left, top = left % shrink, top % shrink
    inside = tuple(x / shrink for x in (left, top, left + w, top + h))
    return np.asarray(image.resize((size, size), _BILINEAR, inside))


def decode_eval(content: bytes, size: int, resize: int) -> np.ndarray:
    """Decodes at full size, resizes the shorter side to `resize`, crops the centre.

    Args:
      content: an encoded image.
      size: height and width of the result, at most `resize`.
      resize: length of the shorter side before the crop.

    Returns:
      uint8 [size, size, 3].

    Raises:
      OSError: the image is broken.
    """
    image = _open(content).convert("RGB")
    short = min(image.size)
    width, height = (resize * side // short for side in image.size)
    image = image.resize((width, height), _BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
