"""Super-resolution: reduced images into the images that they were made of."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from quantnet_jax.common.limits import Number, check
from quantnet_jax.tasks.base import Drawing, Metric, Source, Task

ALIKE = 50.0
"""PSNR in dB from which on two enlarged images count as the same."""
LUMA = (65.481, 128.553, 24.966)
"""Of red, green and blue, from 16 on to 235 (ITU-R BT.601)."""


def super_resolution(source: Source) -> Task:
    """Images into larger ones; the model returns normalized images.

    Loss: mean absolute error of an image, in units of the normalized pixels.
    Metrics: 'psnr' = 10 log10(255^2 / MSE) in dB, of the luma Y of images rounded to
      bytes, without a border of as many pixels as the factor; in evaluation 'ssim' of
      the same, 'bicubic', the PSNR of bicubic interpolation, and the means of all three
      over each test set, such as 'psnr_set5' (where there are several).
    Comparison: 'psnr_between', the PSNR of the hard with respect to the soft outputs.

    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255; of an image whose file is gray it
    is (Y - 16) 255 / 219, the gray itself.

    Args:
      source: a dataset with targets, whose `info` is that of
        `quantnet_jax.data.sets.superres`.
    """
    info = source.info
    if "scale" not in info:
        raise ValueError(
            "the dataset has no larger images as targets; expected one such as "
            "data.name='superres_x2'"
        )
    scale, label = info["scale"], np.asarray(info["test_label"])
    areas = np.asarray(info["areas"], np.int32)
    gray = np.asarray(info["gray"], bool)
    shares = _shares([info["classes"][i] for i in label], label, len(areas))
    mean, std = (np.asarray(x, np.float32) for x in (source.mean, source.std))

    def prepare(data, batch, *, seed, train):
        made = source.prepare(data, batch, seed=seed, train=train)
        examples = {"input": made["image"], **{k: made[k] for k in ("target", "mask")}}
        if train:
            return examples
        of_image = lambda table: jnp.asarray(table)[made["label"]]
        examples["area"], examples["gray"] = of_image(areas), of_image(gray)
        return examples | {f"share_{k}": of_image(x) for k, x in shares.items()}

    def loss(outputs, examples, *, train):
        error = jnp.abs(outputs - examples["target"]).mean(-1)
        if "area" not in examples:
            return error.mean((1, 2))
        return average(error, inside(error.shape, scale * examples["area"]))

    def psnr(pixels, examples):
        error = luma(pixels, examples) - luma(in_bytes(examples["target"]), examples)
        if "area" in examples:
            area = scale * examples["area"]
            error = average(error**2, inside(error.shape, area, scale))
        else:
            border = slice(scale, -scale)
            error = (error[:, border, border] ** 2).mean((1, 2))
        return -10.0 * jnp.log10(jnp.maximum(error / 255.0**2, 1e-10))

    def in_bytes(x):
        per_channel = lambda v: v.reshape(1, 1, 1, -1)
        x = x.astype(jnp.float32) * per_channel(std) + per_channel(mean)
        return jnp.floor(jnp.clip(255.0 * x, 0.0, 255.0) + 0.5)

    def metrics(outputs, examples):
        pixels = in_bytes(outputs)
        found = {"psnr": psnr(pixels, examples)}
        if "area" not in examples:
            return found
        images = [luma(x, examples) for x in (pixels, in_bytes(examples["target"]))]
        within = inside(images[0].shape, scale * examples["area"], scale + HALF)
        found["ssim"] = average(similarity(*images), within)
        found["bicubic"] = psnr(enlarge(in_bytes(examples["input"]), scale), examples)
        return found | {
            f"{name}_{of}": value * examples[f"share_{of}"]
            for of in shares
            for name, value in found.items()
        }

    def between(one, other):
        error = jnp.mean(((one - other) * std.reshape(1, 1, 1, -1)) ** 2, (1, 2, 3))
        return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))

    return Task(
        primary=Metric("psnr", " dB"),
        prepare=prepare,
        loss=loss,
        metrics=metrics,
        compare=lambda soft, hard: {"psnr_between": between(soft, hard)},
        same=lambda one, other: np.asarray(between(one, other)) > ALIKE,
        model_options={"outputs": scale**2 * source.shape[-1]},
        info={"scale": scale, "margin": info["margin"]},
        panels=lambda outputs, examples: {
            "samples": _samples(outputs, examples, info, mean, std)
        },
    )


def _drawn(outputs: Any, laid: Any, info: Any, mean: Any, std: Any) -> np.ndarray:
    """The image in bytes, without the margin."""
    scale, margin = _numbers(info)
    height, width, channels = laid.shape
    wanted = scale * height, scale * width, channels
    if np.shape(outputs) != wanted:
        raise ValueError(
            f"info.scale={scale}, but an image of shape {laid.shape} becomes outputs "
            f"of shape {np.shape(outputs)}, expected {wanted}"
        )
    border = scale * margin
    inner = slice(border, -border or None)
    return _bytes(outputs, mean, std)[inner, inner]


def _bytes(outputs: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    pixels = np.asarray(outputs, np.float32) * np.asarray(std) + np.asarray(mean)
    return np.floor(np.clip(255 * pixels, 0, 255) + 0.5).astype(np.uint8)


def _laid(image: np.ndarray, info: Any) -> np.ndarray:
    """The image with a margin that repeats its edge, as images of a test have."""
    return np.pad(image, [(_numbers(info)[1],) * 2] * 2 + [(0, 0)], mode="edge")


def _numbers(info: Any) -> tuple[int, int]:
    """(scale, margin), which may come from a file."""
    for key, limit in (
        ("scale", Number(1, 8, True)),
        ("margin", Number(0, 4096, True)),
    ):
        check(f"info.{key}", info.get(key), limit)
    return info["scale"], info["margin"]


ENLARGEMENT = Drawing(_laid, _drawn, lambda info: f"_x{_numbers(info)[0]}")
SHOWN, SIDE = 4, 96
"""Images of a report, and pixels of each side that are shown of them."""


def _samples(outputs, examples, info, mean, std) -> list[dict[str, Any]]:
    """The middle of some images: as they go in, enlarged, as they were."""
    from quantnet_jax.data import bicubic  # here: who predicts needs no data

    scale, found = info["scale"], []
    for i, label in enumerate(examples["label"][:SHOWN]):
        top, left, height, width = info["areas"][label]
        side = min(SIDE // scale, height, width)
        y, x = top + (height - side) // 2, left + (width - side) // 2
        small = (slice(y, y + side), slice(x, x + side))
        large = tuple(slice(scale * s.start, scale * s.stop) for s in small)
        enlarged = _bytes(outputs[i], mean, std)[large]
        original, image = examples["target"][i][large], examples["image"][i]
        plain = bicubic.resize(image, *(scale * n for n in image.shape[:2]))[large]
        error = np.abs(enlarged.astype(int) - original)
        rms = max(float(np.sqrt(np.mean(error**2.0))), 1e-3)
        images = {"input": image[small], "bicubic": plain, "network": enlarged}
        images |= {"original": original, "difference x 4": np.clip(4 * error, 0, 255)}
        found.append(
            {
                "title": info["classes"][label],
                "text": f"{20 * np.log10(255 / rms):.1f} dB of this part",
                "good": bool(rms <= np.sqrt(np.mean((plain - original * 1.0) ** 2))),
                "images": {k: v.astype(np.uint8) for k, v in images.items()},
            }
        )
    return found


def _shares(names: list[str], label: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """{test set: float32 (classes,)}: whose mean times a number over all test images
    is the mean of the number over those of the dataset; {} for a single one."""
    of_label = dict(zip(label, [x.split("/")[0].lower() for x in names], strict=True))
    counts = Counter(of_label[i] for i in label)
    if len(counts) < 2:
        return {}
    found = {of: np.zeros(classes, np.float32) for of in counts}
    for i, of in of_label.items():
        found[of][i] = len(label) / counts[of]
    return found


def inside(shape: Any, area: jax.Array, border: int = 0) -> jax.Array:
    """float32 (N, H, W): 1 in the area (N, 4) of an image, at least `border` within."""
    top, left, height, width = (area[:, i, None] for i in range(4))
    row, column = jnp.arange(shape[1])[None], jnp.arange(shape[2])[None]
    within = lambda x, first, size: (x >= first + border) & (x < first + size - border)
    both = within(row, top, height)[:, :, None] & within(column, left, width)[:, None]
    return both.astype(jnp.float32)


def average(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean of each image; (N, H, W) -> (N,)."""
    return jnp.sum(x * weight, (1, 2)) / jnp.maximum(jnp.sum(weight, (1, 2)), 1.0)


def luma(pixels: jax.Array, examples: dict[str, jax.Array]) -> jax.Array:
    """Y of bytes (N, H, W, 3), float32 (N, H, W); see `super_resolution`."""
    y = jnp.sum(pixels * jnp.asarray(LUMA).reshape(1, 1, 1, 3), -1) / 255.0
    if "gray" not in examples:
        return y + 16.0
    return jnp.where(examples["gray"][:, None, None], y * (255 / 219), y + 16.0)


def enlarge(pixels: jax.Array, scale: int) -> jax.Array:
    """Bytes (N, H, W, C) by bicubic interpolation `scale` times as large, in bytes."""
    from quantnet_jax.data import bicubic

    for axis in (1, 2):
        size = pixels.shape[axis]
        weights = jnp.asarray(bicubic.matrix(size, scale * size), jnp.float32)
        made = jnp.tensordot(pixels, weights, (axis, 1), precision="highest")
        made = jnp.floor(jnp.clip(made, 0.0, 255.0) + 0.5)
        pixels = jnp.moveaxis(made, -1, axis)
    return pixels


HALF = 5
"""Pixels on each side of the middle of an SSIM window."""


def similarity(one: jax.Array, other: jax.Array) -> jax.Array:
    """SSIM of Gaussian windows of 11 x 11 pixels and deviation 1.5, in [0, 255].

    Forward: (2 m n + c) (2 s + d) / ((m^2 + n^2 + c) (v + w + d)) with means m, n,
      variances v, w and covariance s in a window, c = (0.01 255)^2, d = (0.03 255)^2

    Reference: Wang et al., Image quality assessment, 2004.

    Args:
      one, other: float32 (N, H, W).

    Returns:
      float32 (N, H, W); valid where the window is in the image, 5 pixels within.
    """
    place = np.arange(-HALF, HALF + 1)
    weight = np.exp(-(place**2) / (2 * 1.5**2))
    weight = (weight / weight.sum()).astype(np.float32)

    def blur(x):
        for axis in (1, 2):
            wide = jnp.pad(x, [(HALF * (i == axis),) * 2 for i in range(3)])
            size, x = x.shape[axis], jnp.zeros_like(x)
            for i, w in enumerate(weight.tolist()):
                x += w * lax.slice_in_dim(wide, i, i + size, axis=axis)
        return x

    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    m, n = blur(one), blur(other)
    v, w = blur(one**2) - m**2, blur(other**2) - n**2
    s = blur(one * other) - m * n
    return (2 * m * n + c) * (2 * s + d) / ((m**2 + n**2 + c) * (v + w + d))
