"""From the bytes of an image to a crop: by libjpeg-turbo, by Pillow, and compared."""

import concurrent.futures
import io
import zipfile

import numpy as np
import pytest
from jpegs import encode, make_jpeg
from PIL import Image

from quantnet_jax.data import jpeg, turbo

BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture
def pillow(monkeypatch):
    """As where the packages of the fast path are not installed."""
    monkeypatch.setattr(turbo, "packages", lambda: None)


@pytest.fixture
def fast():
    """Skips a test where the packages of the fast path are not installed."""
    if turbo.packages() is None:
        pytest.skip("cykooz_resizer or a libturbojpeg of version 3 is missing")


PATHS = ("fast", "pillow")


@pytest.fixture(scope="module")
def images(shared_data):
    """Real ones."""
    path = shared_data / "imagenet-sample" / "imagenet_sample_51.zip"
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(".JPEG")]
        return [archive.read(n) for n in names]


def box_of(content, seed, position):
    """The box of `decode_train`, from its definition."""
    bits = np.random.Philox(
        key=np.array([seed, position], np.uint64),
        counter=np.array([0, 0, 0, 1], np.uint64),
    )
    size = Image.open(io.BytesIO(content)).size
    return jpeg.random_box(*size, np.random.Generator(bits))


def exact(content, box, size):
    """The whole image decoded at full size, cut, resized."""
    left, top, width, height = box
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.resize((size, size), BILINEAR)).astype(float)


def ramps(width, height):
    """An image whose red encodes the column and whose green the row."""
    x = np.linspace(0, 250, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 250, height)[:, None].repeat(width, 1)
    image = np.stack([x, y, np.full_like(x, 9)], -1).round().astype(np.uint8)
    return Image.fromarray(image)


def test_random_boxes_lie_inside_and_have_the_right_shape():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        left, top, w, h = jpeg.random_box(500, 375, rng)
        assert left >= 0 and top >= 0 and left + w <= 500 and top + h <= 375
        assert 0.74 < w / h < 1.35
        areas.append(w * h / (500 * 375))
    assert 0.07 < min(areas) < 0.1 and max(areas) > 0.9
    assert 0.4 < np.mean(areas) < 0.55
    # Too long for any try: the largest centred box.
    assert jpeg.random_box(10_000, 6, rng) == (4996, 0, 8, 6)
    assert jpeg.random_box(1, 1, rng) == (0, 0, 1, 1)


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("path", PATHS)
def test_scaled_decoding_is_close_to_full_decoding(request, path, position):
    """The same box cut from the fully decoded image."""
    request.getfixturevalue(path)
    content = make_jpeg(800, 640, position)
    out = jpeg.decode_train(content, 32, seed=5, position=position).astype(float)
    want = exact(content, box_of(content, 5, position), 32)
    assert abs(out - want).mean() < 1.0
    shifted = np.roll(want, 1, axis=1)
    assert abs(out - shifted).mean() > 4 * abs(out - want).mean()


def test_real_images_are_close_to_the_exact_path(fast, images, monkeypatch):
    """Mean distances, of 255 levels; no image gets brighter or darker."""
    distances = []
    for position, content in enumerate(images):
        box = box_of(content, 0, position)
        want = exact(content, box, 112)
        used = turbo.decode(content, lambda *_: box, 112)  # noqa: B023
        out = jpeg.decode_train(content, 112, seed=0, position=position)
        np.testing.assert_array_equal(out, used)
        with monkeypatch.context() as patch:
            patch.setattr(turbo, "shrinkage", lambda *_: 1)
            full = jpeg.decode_train(content, 112, seed=0, position=position)
        for image in (full, used):
            assert abs((image - want).mean()) < 0.2
        distances.append([abs(x - want).mean() for x in (full, used)])
    # Measured: 0.2 and 3.4 in the worst image.
    assert (np.max(distances, 0) < [0.4, 5.0]).all()
    assert (np.mean(distances, 0) < [0.4, 1.5]).all()


def test_pillow_path_is_exact_where_nothing_is_shrunk(pillow, images):
    for position, content in enumerate(images[:10]):
        box = box_of(content, 0, position)
        out = jpeg.decode_train(content, 224, seed=0, position=position)
        np.testing.assert_array_equal(out, exact(content, box, 224))


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_crops_are_not_shifted(fast, shrink, subsampling, monkeypatch):
    """On ramps values encode the place; half a decoded pixel is shrink / 2."""
    width, height = 403, 301
    content = encode(ramps(width, height), quality=100, subsampling=subsampling)
    monkeypatch.setattr(turbo, "shrinkage", lambda *_: shrink)
    for box in ((0, 0, 403, 301), (13, 7, 301, 203), (101, 99, 302, 202)):
        out = turbo.decode(content, lambda *_: box, 96).astype(float)  # noqa: B023
        for channel, length in ((0, width), (1, height)):
            first, span = box[channel], box[channel + 2]
            found = out[:, :, channel].mean(axis=channel) * (length - 1) / 250
            want = first + (np.arange(96) + 0.5) / 96 * span - 0.5
            # At the ends of the box there are fewer pixels to mix.
            assert abs((found - want)[12:-12].mean()) < 0.08 + 0.04 * shrink
            assert abs((found - want)[12:-12]).max() < 1 + shrink / 2


def test_rows_below_the_crop_are_not_read(fast):
    """Else their damage would be seen."""
    content = make_jpeg(200, 160, 0)
    damaged = bytearray(content)
    damaged[-60:-40] = b"\xff\xd9" * 10
    for rows, equal in ((60, True), (160, False)):
        above, below = (
            turbo.decode(x, lambda *_: (0, 0, 200, rows), 32)  # noqa: B023
            for x in (content, bytes(damaged))
        )
        assert (above == below).all() == equal


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": s} for s in (0, 1, 2)),
        {"restart_marker_rows": 1, "subsampling": 2},
        {"progressive": True, "subsampling": 2},
        {"mode": "L"},
    ],
    ids=str,
)
def test_what_is_beside_the_crop_changes_nothing(fast, options, shrink):
    """Every part has the bits of the whole image, which are those of Pillow."""
    content = make_jpeg(203, 151, 0, **options)
    width, height = -(-203 // shrink), -(-151 // shrink)
    decoder = turbo.read(content)
    assert (decoder.width, decoder.height) == (203, 151)
    whole = decoder.region(content, (0, 0, width, height), shrink).copy()
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (203 // shrink, 151 // shrink))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), whole)
    rng = np.random.default_rng(0)
    for _ in range(40):
        left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        part = decoder.region(content, (left, top, right, bottom), shrink)
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_without_the_library_pillow_decodes_the_same_box(monkeypatch, fast):
    """No library is found, or one without the calls of version 3."""
    content = make_jpeg(200, 160, 0)
    wanted = jpeg.decode_train(content, 16, seed=0, position=3).astype(int)
    for path in ("no_such_library.so", None):  # None: this process, without it
        monkeypatch.setattr(turbo, "_paths", lambda path=path: [path])
        turbo.packages.cache_clear()
        assert turbo.packages() is None and turbo.read(content) is None
        out = jpeg.decode_train(content, 16, seed=0, position=3)
        assert abs(out - wanted).mean() < 1.5
    monkeypatch.undo()
    turbo.packages.cache_clear()


def test_random_crops_depend_on_seed_and_position():
    content = make_jpeg(64, 48, 0)
    crops = {
        jpeg.decode_train(content, 8, seed=s, position=p).tobytes()
        for s in range(3)
        for p in range(3)
    }
    assert len(crops) == 9


def test_threads_do_not_meet(fast):
    contents = [make_jpeg(90 + i, 70, i) for i in range(12)]

    def decode(i):
        content = contents[i % 12]
        return jpeg.decode_train(content, 8 + i % 3, seed=0, position=i).tobytes()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decode, range(96))) == [decode(i) for i in range(96)]


@pytest.mark.parametrize("width, height", [(90, 60), (60, 90), (64, 64), (63, 200)])
def test_center_crop_of_a_gradient(width, height):
    """On a horizontal and vertical ramp the crop's pixel values tell its place."""
    content = encode(ramps(width, height), "PNG")
    out = jpeg.decode_eval(content, 28, 32).astype(float)
    assert out.shape == (28, 28, 3)
    side = 28 / 32 * min(width, height)  # the crop in pixels of the original
    for channel, length in ((0, width), (1, height)):
        ramp = out[:, :, channel].mean(axis=channel)
        centre = (np.arange(28) + 0.5) / 28 * side + (length - side) / 2 - 0.5
        np.testing.assert_allclose(ramp, centre * 250 / (length - 1), atol=3.5)


OTHERS = {
    "CMYK": make_jpeg(40, 30, 0, "CMYK"),
    "PNG": encode(ramps(40, 30), "PNG"),
    "gray PNG": encode(ramps(40, 30).convert("L"), "PNG"),
    "palette": encode(ramps(40, 30).convert("P"), "GIF"),
    "alpha": encode(ramps(40, 30).convert("RGBA"), "PNG"),
    "RGB": make_jpeg(40, 30, 0, keep_rgb=True),
    "more behind it": make_jpeg(40, 30, 0) + b"\0\0",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_images_are_left_to_pillow(kind):
    content = OTHERS[kind]
    assert turbo.read(content) is None
    assert jpeg.decode_eval(content, 16, 16).shape == (16, 16, 3)
    out = jpeg.decode_train(content, 16, seed=0, position=3)
    np.testing.assert_array_equal(out, exact(content, box_of(content, 0, 3), 16))


def test_gray_images_become_rgb():
    content = make_jpeg(40, 40, 0, "L")
    for out in (
        jpeg.decode_eval(content, 16, 16),
        jpeg.decode_train(content, 16, seed=0, position=0),
    ):
        assert out.shape == (16, 16, 3)
        assert (out == out[:, :, :1]).all()


@pytest.mark.parametrize("width, height", [(1, 1), (1, 50), (50, 1), (2, 700), (17, 9)])
def test_thin_images(width, height):
    content = make_jpeg(width, height, 0, subsampling=0)
    for position in range(4):
        out = jpeg.decode_train(content, 8, seed=0, position=position)
        assert out.shape == (8, 8, 3)
        box = box_of(content, 0, position)
        assert abs(out - exact(content, box, 8)).mean() < 2
    assert jpeg.decode_eval(content, 8, 8).shape == (8, 8, 3)


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned, plain = make_jpeg(60, 40, 0, exif=exif), make_jpeg(60, 40, 0)
    assert turned != plain
    for decode in (
        lambda x: jpeg.decode_train(x, 16, seed=0, position=2),
        lambda x: jpeg.decode_eval(x, 16, 20),
    ):
        np.testing.assert_array_equal(decode(turned), decode(plain))


GOOD = make_jpeg(60, 60, 0)
BROKEN = {
    "empty": b"",
    "garbage": b"no image",
    "start only": GOOD[:2],
    "half": GOOD[: len(GOOD) // 2],
    "without its end": GOOD[:-300],
    "header only": GOOD[:400],
    "no rows": GOOD.replace(b"\x00\x3c\x00\x3c", b"\x00\x00\x00\x3c", 1),
    "half a PNG": encode(ramps(40, 30), "PNG")[:80],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_images_are_refused_for_every_box(request, kind, path):
    request.getfixturevalue(path)
    for position in range(5):
        with pytest.raises((OSError, SyntaxError)):
            jpeg.decode_train(BROKEN[kind], 8, seed=0, position=position)
    with pytest.raises((OSError, SyntaxError)):
        jpeg.decode_eval(BROKEN[kind], 8, 8)


def test_random_damage_never_escapes(fast):
    """Any bytes give an image, or an exception where Pillow has one too."""
    rng = np.random.default_rng(0)
    good = make_jpeg(90, 80, 0)
    wanted = jpeg.decode_train(good, 8, seed=0, position=0)
    for trial in range(60):
        content = bytearray(make_jpeg(70, 50, trial))
        for place in rng.integers(2, len(content) - 2, 1 + trial % 5):
            content[place] = rng.integers(256)
        try:
            Image.open(io.BytesIO(content)).convert("RGB")
            readable = True
        except Exception:
            readable = False
        try:
            out = jpeg.decode_train(bytes(content), 8, seed=0, position=trial)
            assert out.shape == (8, 8, 3)
        except Exception:
            assert not readable
        # The next image is not affected.
        out = jpeg.decode_train(good[:-2] + good[-2:], 8, seed=0, position=0)
        np.testing.assert_array_equal(out, wanted)
