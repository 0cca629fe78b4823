"""From a batch to network input, inside the jitted step: gather, crop, flip, normalize.

Random pad-crop and flip of small images are those of "Deep Residual Learning"
(arXiv:1512.03385, section 4.2). The randomness of an example is a function of (seed,
position in the training stream), so it depends neither on how a batch is split over
devices and processes nor on where training was resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax.data import patches

Array = jax.Array

_PURPOSE = 0xA06  # domain-separation constant for fold_in


def draw(position: Array, *, seed: int, pad: int) -> tuple[Array, Array, Array]:
    """Random offsets of a pad-crop and the choice of a flip, for each example.

    Args:
      position: uint32 [B], positions in the training stream.
      seed: 0 <= seed < 2**32.
      pad: offsets are uniform on -pad..pad.

    Returns:
      (down, right, flip): int32 [B], int32 [B], bool [B].
    """
    # The generator is named because the "rbg" ones give other numbers under vmap.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _PURPOSE)

    def one(p):
        # 32 bits modulo 2 pad + 1: the bias is below 1e-7.
        bits = jax.random.bits(jax.random.fold_in(key, p), (3,), jnp.uint32)
        offset = (bits[:2] % jnp.uint32(2 * pad + 1)).astype(jnp.int32) - pad
        return offset[0], offset[1], bits[2] >> jnp.uint32(31) == jnp.uint32(1)

    return jax.vmap(one)(position)


def crop_flip(
    image: Array, row: Array, down: Array, right: Array, flip: Array
) -> Array:
    """Gathers images; zero-padded shift, then horizontal flip, of each.

    Equal to: pad image ``row[b]`` with zeros, crop the window whose top left corner
    lies (down, right) from the unpadded one's, reverse its columns if ``flip[b]``.

    Args:
      image: uint8 [N, H, W, C].
      row: int32 [B], rows of `image`.
      down, right: int32 [B].
      flip: bool [B].

    Returns:
      uint8 [B, H, W, C].
    """
    height, width = image.shape[1:3]
    y = jnp.arange(height)[None] + down[:, None]
    x = jnp.arange(width)[None]
    x = jnp.where(flip[:, None], width - 1 - x, x) + right[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    # One gather from the dataset: the batch is never written out in between.
    # (On a CPU twice as fast as dynamic slices and four times as one-hot matmuls.)
    y = jnp.clip(y, 0, height - 1)[:, :, None]
    x = jnp.clip(x, 0, width - 1)[:, None]
    return jnp.where(inside[..., None], image[row[:, None, None], y, x], jnp.uint8(0))


def normalize(
    image: Array, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32
) -> Array:
    """(image / 255 - mean) / std, in float32, then cast.

    Args:
      image: uint8 [B, H, W, C].
      mean, std: one float per channel, of pixel values scaled to 0..1; std > 0.
      dtype: of the result.

    Returns:
      dtype [B, H, W, C].

    Raises:
      ValueError: the number of means or stds is not C, a std is not positive, or the
        image is not uint8 [B, H, W, C].

    Example:
      >>> import numpy as np
      >>> normalize(np.full((1, 1, 1, 1), 255, np.uint8), [0.5], [0.25]).item()
      2.0
    """
    if image.dtype != jnp.uint8 or image.ndim != 4:
        raise ValueError(
            f"image is {image.dtype}{list(image.shape)}, expected uint8[B, H, W, C]"
        )
    channels = image.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(
                f"{name}={tuple(values)} has {len(values)} numbers, but images have "
                f"{channels} channels; expected one number per channel"
            )
    if min(std) <= 0:
        raise ValueError(f"std={tuple(std)}, expected positive numbers")
    m = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    s = np.asarray(std, np.float32).reshape(1, 1, 1, -1)
    return ((image.astype(jnp.float32) / 255.0 - m) / s).astype(dtype)


def prepare(
    data: Mapping[str, Array] | None,
    batch: Mapping[str, Array],
    *,
    seed: int,
    train: bool,
    pad: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype=jnp.float32,
    crop: int = 0,
) -> dict[str, Array]:
    """Computes the network's input from a batch; pure, for use inside a jitted step.

    Padding is zero *before* normalization (the pixel is black), as in torchvision's
    `RandomCrop(padding)`; after it the border is -mean / std.

    Args:
      data: {"image": uint8 [N, H, W, C], "label": int32 [N]} on the device, perhaps
        with "target" uint8 [N, s H, s W, C], used when the batch holds no "image" of
        its own; else None.
      batch: "position" uint32 [B], "mask" float32 [B] and either "index" int32 [B] or
        (streamed) "image" uint8 [B, H, W, C] and "label" int32 [B].
      seed: of the augmentation, 0 <= seed < 2**32.
      train: True augments; False only gathers and normalizes.
      pad: crop offsets are uniform on -pad..pad; 0 for no crop; at least 0.
      flip: horizontal flip with probability 1/2; of crops one of the 8 symmetries of
        the square, all of them equally likely.
      mean, std: one float per channel, see `normalize`.
      dtype: of the images.
      crop: side of a random square of the image, and of the same part of its target; 0
        for the whole image.

    Returns:
      {"image": dtype [B, H, W, C], "label": int32 [B], "mask": float32 [B]}, and the
      float32 "target", normalized likewise, if there is one.

    Raises:
      ValueError: `pad` is negative or not below the image size, `crop` is larger than
        the image, a target is to be padded, or see `normalize`.

    Example:
      >>> import numpy as np
      >>> data = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.arange(4)}
      >>> batch = {"index": np.array([2]), "position": np.zeros(1, np.uint32),
      ...          "mask": np.ones(1, np.float32)}
      >>> out = prepare(data, batch, seed=0, train=True, pad=1, flip=True,
      ...               mean=[0.5], std=[0.5])
      >>> out["image"].shape, int(out["label"][0])
      ((1, 8, 8, 1), 2)
    """
    if "image" in batch:
        held, row = batch, None
    elif data is None:
        raise ValueError(
            f"batch has the keys {sorted(batch)} and data is None, expected 'image' "
            "and 'label' in the batch, or the arrays of the dataset in data"
        )
    else:
        held, row = data, jnp.asarray(batch["index"])
    image, label = jnp.asarray(held["image"]), jnp.asarray(held["label"])
    label = label if row is None else label[row]
    target = jnp.asarray(held["target"]) if "target" in held else None
    if not 0 <= pad < min(image.shape[1:3]):
        raise ValueError(
            f"pad={pad}, expected 0 to {min(image.shape[1:3]) - 1} for images of "
            f"{image.shape[1]} x {image.shape[2]} pixels"
        )
    if target is not None and pad:
        raise ValueError(f"pad={pad}, expected 0 for images with targets; use crop")
    if crop > min(image.shape[1:3]):
        raise ValueError(
            f"crop={crop}, expected at most {min(image.shape[1:3])} for images of "
            f"{image.shape[1]} x {image.shape[2]} pixels"
        )
    if train and crop:
        free = image.shape[1] - crop, image.shape[2] - crop
        top, left, turn = patches.draw(
            jnp.asarray(batch["position"]), seed=seed, free=free
        )
        turn = turn if flip else jnp.zeros_like(turn)
        row = jnp.arange(image.shape[0]) if row is None else row
        if target is not None:
            scale = target.shape[1] // image.shape[1]
            corner = (row, scale * top, scale * left)
            target = patches.crops(target, *corner, turn, scale * crop)
        image = patches.crops(image, row, top, left, turn, crop)
    elif train and target is None and (pad or flip):
        down, right, coin = draw(jnp.asarray(batch["position"]), seed=seed, pad=pad)
        coin = coin if flip else jnp.zeros_like(coin)
        row = jnp.arange(image.shape[0]) if row is None else row
        image = crop_flip(image, row, down, right, coin)
    elif row is not None:
        image = image[row]
        target = None if target is None else target[row]
    made = {"image": normalize(image, mean, std, dtype), "label": label}
    if target is not None:
        made["target"] = normalize(target, mean, std)
    return made | {"mask": batch["mask"]}
