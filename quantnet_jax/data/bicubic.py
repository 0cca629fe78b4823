"""Bicubic resampling as the field does it: that of MATLAB's `imresize`, as matrices."""

from __future__ import annotations

import numpy as np


def matrix(size: int, result: int) -> np.ndarray:
    """Weights that resample an axis: `matrix(n, m) @ x` has m numbers for n.

    Forward: y_i = sum_j w_ij x_j, w_ij proportional to k(t (u_i - j)), rows of sum 1,
      u_i = (i + 1/2) / s - 1/2, s = m / n, t = min(s, 1) (no aliasing if it shrinks),
      k(v) = 3/2 |v|^3 - 5/2 |v|^2 + 1 up to 1, -1/2 |v|^3 + 5/2 |v|^2 - 4 |v| + 2 up to
      2. Beyond its ends the axis goes on with its first and last number.

    Reference: Keys, Cubic convolution interpolation, 1981; MATLAB's imresize, of whose
    images the tables of super-resolution are (newer versions reflect at the ends).

    Args:
      size: n, numbers of the axis.
      result: m, numbers wanted.

    Returns:
      float64 (m, n).

    Example:
      >>> matrix(4, 2).sum(1).tolist()
      [1.0, 1.0]
    """
    scale = result / size
    stretch = min(scale, 1.0)
    center = (np.arange(result) + 0.5) / scale - 0.5
    first = np.floor(center - 2 / stretch).astype(int)
    near = first[:, None] + np.arange(int(np.ceil(4 / stretch)) + 2)[None]
    weight = _cubic(stretch * (center[:, None] - near))
    weight /= weight.sum(1, keepdims=True)
    found = np.zeros((result, size))
    row, column = np.arange(result)[:, None], np.clip(near, 0, size - 1)
    np.add.at(found, (row, column), weight)
    return found


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image of another size: first its columns, then its rows, each in bytes.

    Args:
      image: uint8 [H, W, C].
      height, width: wanted.

    Returns:
      uint8 [height, width, C].
    """
    for axis, size in enumerate((height, width)):
        rows = np.moveaxis(image, axis, 0)
        made = np.tensordot(matrix(len(rows), size), rows, 1)
        rounded = np.clip(np.floor(made + 0.5), 0, 255).astype(np.uint8)
        image = np.moveaxis(rounded, 0, axis)
    return np.ascontiguousarray(image)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
