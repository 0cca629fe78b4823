"""Point clouds as voxels: ModelNet40's format, and generated shapes.

A voxel grid of side S is an image (S, S, S), whose channels are the depth; voxels are 0
or 255. Networks over active sites take them so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.format import read_array

from quantnet_jax.data.dataset import Dataset, check, check_labels
from quantnet_jax.data.files import shown
from quantnet_jax.data.zips import unzip

SIDE = 24
"""Of the grids of `read_modelnet` and `shapes`."""
POINTS = 512
"""Of a generated shape."""
FILE = "modelnet40_airplane_bathtub_512.npz"
NAMES = ("airplane", "bathtub")
CLOUDS = 2**13
"""Of a file, at most; the one of the two classes has 882."""
LARGEST = 2**25
"""Bytes of an array in it, at most."""
KEYS = ("xyz_int16", "label", "is_test")
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "cross", "helix", "disc")


def voxelize(points: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Which voxels of the cube [-1, 1]^3 hold a point.

    Args:
      points: floating (N, P, 3); those outside fall into the voxels at the border.
      side: of the grid.

    Returns:
      uint8 (N, side, side, side), 255 where a point is, else 0.

    Raises:
      ValueError: the points have another shape or are not finite.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or not np.isfinite(points).all():
        raise ValueError(
            f"points of shape {list(points.shape)}, expected finite [N, P, 3]"
        )
    at = np.floor((points + 1.0) * (side / 2)).astype(np.int64).clip(0, side - 1)
    grid = np.zeros((len(points), side, side, side), np.uint8)
    rows = np.arange(len(points))[:, None]
    grid[rows, at[..., 0], at[..., 1], at[..., 2]] = 255
    return grid


def read_modelnet(folder: str | Path) -> Dataset:
    """Airplanes and bathtubs of ModelNet40, in their official split, as voxels.

    Args:
      folder: holds modelnet40_airplane_bathtub_512.npz, with the keys 'xyz_int16'
        (N, P, 3; divided by 32000 the points in the unit ball), 'label' and 'is_test'.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: it is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} not found: expected the point clouds")
    names = [f"{key}.npy" for key in KEYS]
    expected = f"arrays {', '.join(KEYS)}"
    found = unzip(path, names.__contains__, read_array, expected, LARGEST)
    kinds = ("i", "iu", "biu")
    arrays = [found.get(name, np.empty(0)) for name in names]
    xyz, label, test = arrays
    if (
        any(x.dtype.kind not in kind for x, kind in zip(arrays, kinds, strict=True))
        or xyz.dtype.itemsize != 2
        or xyz.ndim != 3
        or xyz.shape[1:] != (max(1, xyz.shape[1]), 3)
        or not label.shape == test.shape == xyz.shape[:1]
        or len(xyz) > CLOUDS
    ):
        listed = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
        raise ValueError(
            f"{shown(path)}: found {listed:.200}, expected {expected}: int16[N, P, 3], "
            f"int[N] and bool[N], P > 0, N at most {CLOUDS}"
        )
    check_labels(label, len(NAMES), shown(path))
    image = voxelize(xyz.astype(np.float32) / 32000)
    label, test = label.astype(np.int32), test.astype(bool)
    parts = [x[part] for part in (~test, test) for x in (image, label)]
    return check(Dataset(*parts, classes=NAMES, name="modelnet40"))


def shapes(train: int = 2000, test: int = 500, seed: int = 0) -> Dataset:
    """Generated surfaces of eight kinds, turned, stretched and noisy, as voxels.

    Args:
      train, test: numbers of shapes; labels are balanced.
      seed: of all of it.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for count in (train, test):
        label = rng.permutation(np.arange(count, dtype=np.int32) % len(SHAPES))
        clouds = np.stack([_cloud(rng, SHAPES[c]) for c in label])
        parts += [voxelize(clouds), label]
    return check(Dataset(*parts, classes=SHAPES, name="shapes"))


def _cloud(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Points (POINTS, 3) of a random surface of a kind."""
    u, v = rng.uniform(size=(2, POINTS))
    turn, height = 2 * np.pi * u, 2 * v - 1
    line = lambda *x: np.stack(np.broadcast_arrays(*x), axis=-1)
    ring = lambda radius, z: line(radius * np.cos(turn), radius * np.sin(turn), z)
    if kind == "sphere":
        points = ring(np.sqrt(1 - height**2), height)
    elif kind == "cube":
        points = rng.uniform(-1, 1, (POINTS, 3))
        face = rng.integers(0, 3, POINTS)
        points[np.arange(POINTS), face] = np.sign(points[np.arange(POINTS), face])
    elif kind == "cylinder":
        points = ring(0.6, height)
    elif kind == "cone":
        points = ring(np.sqrt(v), 1 - 2 * np.sqrt(v))
    elif kind == "torus":
        inner = 2 * np.pi * v
        points = ring(0.7 + 0.3 * np.cos(inner), 0.3 * np.sin(inner))
    elif kind == "cross":
        points = rng.normal(0, 0.08, (POINTS, 3))
        points[np.arange(POINTS), rng.integers(0, 3, POINTS)] = height
    elif kind == "helix":
        points = line(0.7 * np.cos(2 * turn), 0.7 * np.sin(2 * turn), 2 * u - 1)
    else:
        points = ring(np.sqrt(v), 0.0)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    points = (points * rng.uniform(0.6, 1.0, 3)) @ (q * np.sign(np.diag(r)))
    points = points / np.linalg.norm(points, axis=-1).max() * rng.uniform(0.7, 0.95)
    return points + rng.normal(0, 0.02, points.shape)
