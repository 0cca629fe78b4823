"""Reconstruction of images through a narrow network: float-valued targets, PSNR."""

import jax.numpy as jnp
import numpy as np

from quantnet_jax.tasks.base import Metric, Source, Task


def reconstruction(source: Source) -> Task:
    """Images into themselves; the model returns normalized images like its input.

    Loss: mean squared error of an image, in units of the normalized pixels.
    Metric: 'psnr' = 10 log10(1 / MSE) with pixels in [0, 1], in dB, at most 100.
    Comparison: 'psnr_between', the PSNR of the hard with respect to the soft outputs.

    Args:
      source: a dataset of images.
    """
    std = np.asarray(source.std, np.float32).reshape(1, 1, 1, -1)

    def prepare(data, batch, *, seed, train):
        made = source.prepare(data, batch, seed=seed, train=train)
        image = made["image"]
        target = image.astype(jnp.float32)
        return {"input": image, "target": target, "mask": made["mask"]}

    def mse(outputs, target):
        return jnp.mean((outputs - target) ** 2, axis=(1, 2, 3))

    def psnr(outputs, target):
        error = mse(outputs * std, target * std)
        return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))

    return Task(
        primary=Metric("psnr", " dB"),
        prepare=prepare,
        loss=lambda outputs, examples, *, train: mse(outputs, examples["target"]),
        metrics=lambda outputs, examples: {"psnr": psnr(outputs, examples["target"])},
        compare=lambda soft, hard: {"psnr_between": psnr(hard, soft)},
        same=lambda one, other: abs(one - other).max(axis=(1, 2, 3)) < 1e-3,
        model_options={"outputs": source.shape[-1]},
    )
