"""Augmentation on the device against a plain NumPy loop over padded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantnet_jax.data import augment, prepare

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (20, 8, 6, 3), dtype=np.uint8),
        "label": rng.integers(0, 5, 20).astype(np.int32),
    }


def make_batch(count, start=0, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "index": rng.integers(0, 20, count).astype(np.int32),
        "position": np.arange(start, start + count, dtype=np.uint32),
        "mask": np.ones(count, np.float32),
    }


def run(data, batch, *, train=True, pad=2, flip=True, seed=7, dtype=jnp.float32):
    @jax.jit
    def call(data, batch):
        return prepare(
            data,
            batch,
            seed=seed,
            train=train,
            pad=pad,
            flip=flip,
            mean=MEAN,
            std=STD,
            dtype=dtype,
        )

    return jax.device_get(call(data, batch))


def reference(image, down, right, flip, pad):
    """Pads with zeros, crops, mirrors, normalizes: one image, pixel by pixel."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            source = width - 1 - x if flip else x
            pixel = padded[y + pad + down, source + pad + right]
            for c in range(channels):
                out[y, x, c] = (pixel[c] / 255 - MEAN[c]) / STD[c]
    return out


@pytest.mark.parametrize("pad, flip", [(2, True), (0, True), (3, False), (5, True)])
def test_against_a_loop(images, pad, flip):
    batch = make_batch(24)
    out = run(images, batch, pad=pad, flip=flip)
    down, right, coin = augment.draw(jnp.asarray(batch["position"]), seed=7, pad=pad)
    for b in range(24):
        image = images["image"][batch["index"][b]]
        mirrored = bool(coin[b]) and flip
        want = reference(image, int(down[b]), int(right[b]), mirrored, pad)
        np.testing.assert_allclose(out["image"][b], want, atol=2e-6)
    np.testing.assert_array_equal(out["label"], images["label"][batch["index"]])
    assert out["image"].dtype == np.float32


def test_draws_are_uniform():
    """All 25 offsets and both coins occur about equally often, independently."""
    count = 20_000
    down, right, coin = augment.draw(jnp.arange(count, dtype=jnp.uint32), seed=0, pad=2)
    cell = (np.asarray(down) + 2) * 10 + (np.asarray(right) + 2) * 2 + np.asarray(coin)
    seen = np.bincount(cell, minlength=50)
    assert seen.size == 50
    assert (np.square(seen - count / 50) / (count / 50)).sum() < 85.4  # 0.1 %, 49 dof


def test_draws_depend_on_seed_and_position():
    position = jnp.arange(64, dtype=jnp.uint32)
    a = np.stack([np.asarray(v) for v in augment.draw(position, seed=0, pad=4)])
    b = np.stack([np.asarray(v) for v in augment.draw(position, seed=1, pad=4)])
    later = augment.draw(position + jnp.uint32(64), seed=0, pad=4)
    c = np.stack([np.asarray(v) for v in later])
    assert (a != b).any() and (a != c).any()


def test_result_does_not_depend_on_the_split_of_a_batch(images):
    batch = make_batch(16, start=2**32 - 8)  # positions wrap within the batch
    whole = run(images, batch)["image"]
    parts = [
        run(images, {k: v[i : i + 4] for k, v in batch.items()})["image"]
        for i in range(0, 16, 4)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_result_does_not_depend_on_the_device_count(images):
    assert jax.device_count() == 4
    batch = make_batch(16)
    whole = run(images, batch)["image"]

    def call(data, batch):
        return prepare(
            data, batch, seed=7, train=True, pad=2, flip=True, mean=MEAN, std=STD
        )["image"]

    split = {k: v.reshape(4, 4) for k, v in batch.items()}
    spread = jax.pmap(call, in_axes=(None, 0))(images, split)
    np.testing.assert_allclose(
        np.asarray(spread).reshape(whole.shape), whole, atol=1e-6
    )


def test_any_default_generator_gives_the_same(images):
    batch = make_batch(8)
    with jax.default_prng_impl("rbg"):
        other = run(images, batch)["image"]
    np.testing.assert_array_equal(run(images, batch)["image"], other)


def test_streamed_batch_equals_gathered_batch(images):
    batch = make_batch(12)
    streamed = {
        "image": images["image"][batch["index"]],
        "label": images["label"][batch["index"]],
        "position": batch["position"],
        "mask": batch["mask"],
    }
    for train in (True, False):
        a, b = run(images, batch, train=train), run(None, streamed, train=train)
        for key in ("image", "label", "mask"):
            np.testing.assert_array_equal(a[key], b[key])


def test_evaluation_only_normalizes(images):
    batch = make_batch(10)
    out = run(images, batch, train=False)["image"]
    want = (images["image"][batch["index"]] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(out, want, atol=2e-6)


def test_dtype_is_cast_after_the_arithmetic(images):
    batch = make_batch(10)
    out = run(images, batch, dtype=jnp.bfloat16)["image"]
    assert out.dtype == jnp.bfloat16
    want = run(images, batch)["image"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(out, want)


def test_padding_is_black_before_normalization():
    data = {
        "image": np.full((1, 4, 4, 3), 255, np.uint8),
        "label": np.zeros(1, np.int32),
    }
    batch = {**make_batch(32), "index": np.zeros(32, np.int32)}
    out = run(data, batch, pad=1)["image"]
    black, white = -np.array(MEAN) / STD, (1 - np.array(MEAN)) / STD
    is_black = np.isclose(out, black, atol=1e-5).all(-1)
    is_white = np.isclose(out, white, atol=1e-5).all(-1)
    assert (is_black | is_white).all() and is_black.any()


@pytest.mark.parametrize("pad", [-1, 6])
def test_bad_pad(images, pad):
    with pytest.raises(ValueError, match=f"pad={pad}, expected 0 to 5"):
        run(images, make_batch(2), pad=pad)


def test_bad_statistics_and_images(images):
    image = images["image"]
    with pytest.raises(ValueError, match="mean=.* has 1 numbers, but images have 3"):
        augment.normalize(image, [0.5], STD)
    with pytest.raises(ValueError, match="expected positive"):
        augment.normalize(image, MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match=r"expected uint8\[B, H, W, C\]"):
        augment.normalize(image.astype(np.float32), MEAN, STD)
    with pytest.raises(ValueError, match="data is None"):
        run(None, make_batch(2))
