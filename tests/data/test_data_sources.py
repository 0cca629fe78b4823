"""Sets from their original files, checked against bytes that the tests write."""

import contextlib
import gzip
import hashlib
import io
import lzma
import random
import re
import struct
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from quantnet_jax import config as config_lib
from quantnet_jax import data
from quantnet_jax.data.sets import formats, sources
from tools import make_bundled

TINY_CIFAR10 = formats.CIFAR10._replace(records=(4, 6))
TINY_CIFAR100 = formats.CIFAR100._replace(records=(7, 5))


def idx_file(magic, shape, payload):
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(payload)


@pytest.fixture
def mnist_folder(tmp_path):
    """Four small idx files, two of them compressed, and the values in them."""
    rng = np.random.default_rng(0)
    values = {}
    for part, count in (("train", 11), ("t10k", 5)):
        image = rng.integers(0, 256, (count, 6, 7), dtype=np.uint8)
        label = rng.integers(0, 10, count, dtype=np.uint8)
        values[part] = image, label
        images = idx_file(0x803, image.shape, image.tobytes())
        labels = idx_file(0x801, label.shape, label.tobytes())
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path, values


def cifar_bytes(count, label_bytes, classes, seed):
    """Records written byte by byte, as the format's description says."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    label = rng.integers(0, classes, count)
    out = bytearray()
    for i in range(count):
        out += bytes([3] * (label_bytes - 1) + [int(label[i])])
        for channel in range(3):
            for row in range(32):
                out += bytes(image[i, row, :, channel].tolist())
    return bytes(out), image, label


def cifar_set(form):
    files, images, labels = {}, [], []
    for names, count in zip((form.train, form.test), form.records, strict=True):
        parts = []
        for name in names:
            seed = sum(name.encode())
            content, image, label = cifar_bytes(
                count, form.label_bytes, form.classes, seed
            )
            files[name] = content
            parts.append((image, label))
        images.append(np.concatenate([p[0] for p in parts]))
        labels.append(np.concatenate([p[1] for p in parts]))
    return files, images, labels


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path, mode, folder, files):
    with tarfile.open(path, mode) as tar:
        for name, content in {"readme.html": b"x", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_idx_files_give_the_written_values(mnist_folder):
    folder, values = mnist_folder
    ds = data.load("mnist", str(folder))
    for part, image, label in (
        ("train", ds.train_image, ds.train_label),
        ("t10k", ds.test_image, ds.test_label),
    ):
        np.testing.assert_array_equal(image[..., 0], values[part][0])
        np.testing.assert_array_equal(label, values[part][1])
        assert image.dtype == np.uint8 and label.dtype == np.int32
    assert ds.classes == tuple("0123456789") and ds.name == "mnist"


@pytest.mark.parametrize("form", [TINY_CIFAR10, TINY_CIFAR100])
@pytest.mark.parametrize("place", ["loose", "subfolder", "gz", "xz", "plain", "file"])
def test_cifar_files_give_the_written_values(form, place, tmp_path):
    files, images, labels = cifar_set(form)
    where = tmp_path
    if place == "loose":
        write_files(tmp_path, files)
    elif place == "subfolder":
        write_files(tmp_path / form.subfolder, files)
    else:
        end = {"gz": ".tar.gz", "xz": ".tar.xz"}.get(place, ".tar")
        mode = {"gz": "w:gz", "xz": "w:xz"}.get(place, "w")
        write_tar(tmp_path / (form.archive + end), mode, form.subfolder, files)
        where = tmp_path / (form.archive + end) if place == "file" else tmp_path
        before = sorted(tmp_path.rglob("*"))
    out = formats.read_cifar(where, form)
    for i in range(2):
        np.testing.assert_array_equal(out[2 * i], images[i])
        np.testing.assert_array_equal(out[2 * i + 1], labels[i])
    if place not in ("loose", "subfolder"):
        assert sorted(tmp_path.rglob("*")) == before  # nothing unpacked to disk


def test_official_cifar_sizes():
    assert formats.CIFAR10.records == (10_000, 10_000)
    assert formats.CIFAR100.records == (50_000, 10_000)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_missing_folder_and_files(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path / "nowhere")
    assert "nowhere: no such folder" in one_line(error)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    text = one_line(error)
    assert "notes.txt" in text and re.search(r"\.bin|ubyte", text)


def test_one_missing_file_is_named(mnist_folder):
    folder, _ = mnist_folder
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte not found"):
        data.load("mnist", folder)


def damage(folder, case):
    """Damages one file; returns what the message must say."""
    label = folder / "train-labels-idx1-ubyte"
    image = folder / "train-images-idx3-ubyte.gz"
    content = label.read_bytes()
    plain = gzip.decompress(image.read_bytes())
    if case == "truncated":
        label.write_bytes(content[:-1])
        return str(label), "found 18 bytes, expected 19"
    if case == "too long":
        label.write_bytes(content + b"\0")
        return str(label), "found more than 19 bytes, expected 19"
    if case == "header only":
        label.write_bytes(content[:6])
        return str(label), "found 6 bytes, expected at least 8"
    if case == "empty":
        label.write_bytes(b"")
        return str(label), "expected 0x00000801"
    if case == "wrong magic":
        image.write_bytes(gzip.compress(content))
        return str(image), "found magic number 0x00000801, expected 0x00000803"
    if case == "truncated gzip":
        image.write_bytes(image.read_bytes()[:-20])
        return str(image), "broken gzip"
    if case == "short gzip":
        image.write_bytes(gzip.compress(plain[:-1]))
        return str(image), "found 477 bytes, expected 478"
    if case == "flipped bit":
        raw = bytearray(image.read_bytes())
        raw[-5] ^= 1  # in the stored CRC
        image.write_bytes(bytes(raw))
        return str(image), "broken gzip"
    if case == "label range":
        label.write_bytes(content[:-1] + b"\x0a")
        return str(label), "label 10 at position 10, expected 0 to 9"
    if case == "fewer labels":
        label.write_bytes(idx_file(0x801, (10,), content[8:-1]))
        return str(label), "found 10 labels, expected 11"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "truncated",
        "too long",
        "header only",
        "empty",
        "wrong magic",
        "truncated gzip",
        "short gzip",
        "flipped bit",
        "label range",
        "fewer labels",
    ],
)
def test_damaged_idx_files(case, mnist_folder):
    folder, _ = mnist_folder
    path, says = damage(folder, case)
    with pytest.raises(ValueError) as error:
        data.load("mnist", folder)
    text = one_line(error)
    assert path in text and says in text


def spelled(folder, case):
    """Stores the same files in one of the ways that tools leave."""
    for path in list(folder.iterdir()):
        content, name = path.read_bytes(), path.name.removesuffix(".gz")
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        path.unlink()
        if case == "unpacked by a browser":
            (folder / f"{name}.gz").write_bytes(content)
        elif case == "packed under the plain name":
            (folder / name).write_bytes(gzip.compress(content))
        elif case == "with a dot":
            (folder / name.replace("-idx", ".idx")).write_bytes(content)
        elif case == "in folders":
            (folder / name).mkdir()
            (folder / name / name.replace("-idx", ".idx")).write_bytes(content)
        elif case == "in an archive":
            with tarfile.open(folder.parent / "mnist.tar", "a") as archive:
                info = tarfile.TarInfo(f"mnist/{name.replace('-idx', '.idx')}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder.parent / "mnist.tar" if case == "in an archive" else folder


@pytest.mark.parametrize(
    "case",
    [
        "unpacked by a browser",
        "packed under the plain name",
        "with a dot",
        "in folders",
        "in an archive",
    ],
)
def test_files_as_tools_leave_them(case, mnist_folder, tmp_path_factory):
    folder, values = mnist_folder
    place = tmp_path_factory.mktemp("tools") / "mnist"
    folder.rename(place)
    found = data.load("mnist", spelled(place, case))
    np.testing.assert_array_equal(found.train_image[..., 0], values["train"][0])
    np.testing.assert_array_equal(found.test_label, values["t10k"][1])
    place.mkdir(exist_ok=True)
    place.rename(folder)


def zeros(path, size):
    """A gzip file of zeros behind an idx header that says three images."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx_file(0x803, (3, 6, 7), [0] * 126))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


@pytest.mark.parametrize("case", ["gzip", "sparse", "header", "member", "archive"])
def test_memory_is_bounded_by_what_the_format_says(case, mnist_folder):
    folder, _ = mnist_folder
    path, form = folder / "train-images-idx3-ubyte.gz", None
    if case == "gzip":
        zeros(path, 1 << 28)
        says = "found more than 142 bytes, expected 142"
    elif case == "sparse":
        path.unlink()
        with open(path.with_suffix(""), "wb") as file:
            file.write(idx_file(0x803, (3, 6, 7), [0] * 126))
            file.truncate(1 << 40)
        says = "found more than 142 bytes, expected 142"
    elif case == "header":
        header = idx_file(0x803, (2**24, 2**16, 2**16), [0] * 9)
        path.write_bytes(gzip.compress(header))
        says = "its header says .* bytes, expected at most"
    else:
        folder, form = folder / "cifar-10-binary.tar", TINY_CIFAR10
        name = "test_batch.bin" if case == "member" else "notes.txt"
        info = tarfile.TarInfo(name)
        info.size = 12 << 30
        with open(folder, "wb") as file:
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            file.truncate(12 << 30)
        says = "found more than" if case == "member" else "unpacks to more than"
    tracemalloc.start()
    with pytest.raises(ValueError, match=says) as error:
        formats.read_cifar(folder, form) if form else data.load("mnist", folder)
    one_line(error)
    assert tracemalloc.get_traced_memory()[1] < 3e7
    tracemalloc.stop()


def test_random_damage_is_one_line_or_harmless(mnist_folder):
    folder, _ = mnist_folder
    files, draw = {p: p.read_bytes() for p in folder.iterdir()}, random.Random(0)
    refused = 0
    for _ in range(60):
        path = draw.choice(sorted(files))
        content = bytearray(files[path])
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(min(len(content), 24))] = draw.randrange(256)
        path.write_bytes(bytes(content)[: draw.choice([len(content), 5, 17])])
        try:
            data.load("mnist", folder)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert "\n" not in str(error)
        path.write_bytes(files[path])
    assert refused > 40


def test_train_and_test_of_two_sizes(mnist_folder):
    folder, _ = mnist_folder
    small = idx_file(0x803, (5, 2, 2), [0] * 20)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(small))
    with pytest.raises(ValueError, match=r"t10k-images.*\[2, 2, 1\].*\[6, 7, 1\]"):
        data.load("mnist", folder)


@pytest.mark.parametrize("shape", [(2**24 + 1, 0, 0), (11, 0, 7)])
def test_too_many_or_empty_images(shape, mnist_folder):
    folder, _ = mnist_folder
    for part in ("train", "t10k"):
        path = folder / f"{part}-images-idx3-ubyte.gz"
        count = min(shape[0], 5 if part == "t10k" else shape[0])
        path.write_bytes(gzip.compress(idx_file(0x803, (count, *shape[1:]), b"")))
    with pytest.raises(ValueError, match="items, expected at most|expected a non-empt"):
        data.load("mnist", folder)


def test_an_idx_file_is_held_once(mnist_folder):
    folder, _ = mnist_folder
    image = idx_file(0x803, (11, 1000, 1000), b"") + bytes(11_000_000)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(image, 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="t10k-images"):
        data.load("mnist", folder)
    assert tracemalloc.get_traced_memory()[1] < 1.7e7
    tracemalloc.stop()


def member(kind, size=0):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def blocks(content):
    return content + bytes(-len(content) % 512)


NUMBER = b"21 GNU.sparse.size=x\n"
HOLES = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"


@pytest.mark.parametrize(
    "content, says",
    [
        (member(tarfile.XHDTYPE, 2**18) + b"9" * 2**18, "longer headers"),
        (member(tarfile.REGTYPE) * 10_001, "more or longer headers"),
        ((member(tarfile.GNUTYPE_LONGNAME, 1) + blocks(b"a")) * 2000, "recursion"),
        ((member(tarfile.XGLTYPE, 2048) + blocks(b"9" * 2048)) * 600, "broken archive"),
        (member(tarfile.GNUTYPE_SPARSE), "with holes"),
        (member(tarfile.XHDTYPE, len(HOLES)) + blocks(HOLES) + member(b"0"), "holes"),
        (
            member(tarfile.XHDTYPE, 21) + blocks(NUMBER) + member(b"0"),
            "invalid literal",
        ),
    ],
    ids=["digits", "members", "nested", "many", "sparse", "sparse of pax", "number"],
)
def test_headers_of_archives_are_few_and_short(content, says, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(gzip.compress(content + bytes(1024), 1))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=says) as error:
        data.load("cifar10", tmp_path)
    assert str(path) in one_line(error)
    assert time.perf_counter() - start < 5


def test_names_that_are_not_printable_are_escaped(tmp_path):
    (tmp_path / "we\nird\x1b[31m.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"'we\\nird\\x1b\[31m.bin'") as error:
        data.load("cifar10", tmp_path)
    assert str(error.value).isprintable()
    write_tar(tmp_path / "cifar-10-binary.tar", "w", "a\nb", {"test_batch.bin": b"x"})
    with pytest.raises(ValueError, match="found 1 bytes") as error:
        data.load("cifar10", tmp_path / "cifar-10-binary.tar")
    assert str(error.value).isprintable()


def test_damaged_cifar_files(tmp_path):
    files, _, _ = cifar_set(TINY_CIFAR100)
    write_files(tmp_path, {**files, "train.bin": files["train.bin"][:-3074]})
    with pytest.raises(ValueError, match="train.bin: found 18444 bytes, expected 2151"):
        formats.read_cifar(tmp_path, TINY_CIFAR100)
    bad = bytearray(files["train.bin"])
    bad[3074 + 1] = 100
    write_files(tmp_path, {"train.bin": bytes(bad)})
    with pytest.raises(ValueError, match="label 100 at position 1, expected 0 to 99"):
        formats.read_cifar(tmp_path, TINY_CIFAR100)


@pytest.mark.parametrize("end", ["gz", "xz"])
def test_damaged_archives(end, tmp_path):
    files, _, _ = cifar_set(TINY_CIFAR100)
    path = tmp_path / f"cifar-100-binary.tar.{end}"
    write_tar(path, f"w:{end}", "cifar-100-binary", files)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b"", b"no archive" * 99):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="broken archive") as error:
            formats.read_cifar(tmp_path, TINY_CIFAR100)
        assert str(path) in one_line(error)
    # The python version of the set, which would have to be unpickled.
    write_tar(path, f"w:{end}", "cifar-100-python", {"train": b"x", "test": b"x"})
    with pytest.raises(FileNotFoundError, match="holds no train.bin, test.bin"):
        formats.read_cifar(tmp_path, TINY_CIFAR100)


@pytest.mark.parametrize(
    "wrong, near", [("cifar-100", "cifar100"), ("fashion", "fashion_mnist")]
)
def test_unknown_name_names_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        data.load(wrong)


def test_arguments_that_do_not_belong(tmp_path):
    with pytest.raises(ValueError, match="not read from a folder"):
        data.load("bundled", tmp_path)
    with pytest.raises(ValueError, match="arguments of 'synthetic'"):
        data.load("bundled", train=3)


def test_bundled_is_stratified_and_fast():
    start = time.perf_counter()
    ds = data.load("bundled")
    assert time.perf_counter() - start < 3.0  # under 0.4 s on an idle machine
    assert ds.train_image.shape == (10_000, 28, 28, 1)
    assert ds.test_image.shape == (2_000, 28, 28, 1)
    assert np.bincount(ds.train_label).tolist() == [1000] * 10
    assert np.bincount(ds.test_label).tolist() == [200] * 10
    assert ds.classes[9] == "Ankle boot"


def test_bundled_file_is_what_its_readme_says():
    content = sources.BUNDLED_FILE.read_bytes()
    readme = (sources.BUNDLED_FILE.parent / "README.md").read_text()
    assert hashlib.md5(content).hexdigest() in readme
    assert f"{len(content):,} bytes" in readme
    assert "Copyright (c) 2017 Zalando SE" in readme


def test_bundled_is_the_first_of_each_class_of_the_original(shared_data):
    folder = shared_data / "fashion-mnist"
    whole, part = data.load("fashion_mnist", folder), data.load("bundled")
    for image, label, kept, kept_label, quota in (
        (
            whole.train_image,
            whole.train_label,
            part.train_image,
            part.train_label,
            1000,
        ),
        (whole.test_image, whole.test_label, part.test_image, part.test_label, 200),
    ):
        seen, rows = [0] * 10, []
        for row, c in enumerate(label):
            if seen[c] < quota:
                seen[c] += 1
                rows.append(row)
        np.testing.assert_array_equal(kept, image[rows])
        np.testing.assert_array_equal(kept_label, label[rows])


def test_make_bundled_is_deterministic(mnist_folder, tmp_path):
    folder, _ = mnist_folder
    ds = data.load("mnist", folder)
    content = make_bundled.archive_bytes(ds)
    assert content == make_bundled.archive_bytes(ds)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(content))) as tar:
        assert {m.mtime for m in tar} == {0}
    path = tmp_path / "again.tar.xz"
    path.write_bytes(content)
    for a, b in zip(formats.read_idx(path, 10), ds[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_fashion_mnist_original(shared_data):
    ds = data.load("fashion_mnist", shared_data / "fashion-mnist")
    assert ds.train_label[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert np.bincount(ds.train_label).tolist() == [6000] * 10
    assert np.bincount(ds.test_label).tolist() == [1000] * 10
    pixels = ds.train_image.astype(np.float64) / 255
    assert data.normalization(ds)[0][0] == pytest.approx(pixels.mean(), abs=1e-7)
    assert data.normalization(ds)[1][0] == pytest.approx(pixels.std(), abs=1e-7)


@pytest.fixture(scope="module")
def cifar100(shared_data):
    return data.load("cifar100", shared_data / "cifar100")


def test_cifar100_original(cifar100):
    """First labels and statistics as published."""
    assert cifar100.train_label[:10].tolist() == [19, 29, 0, 11, 1, 86, 90, 28, 23, 31]
    assert cifar100.test_label[:10].tolist() == [49, 33, 72, 51, 71, 92, 15, 14, 23, 0]
    assert set(np.bincount(cifar100.train_label)) == {500}
    assert set(np.bincount(cifar100.test_label)) == {100}
    mean, std = data.statistics(cifar100.train_image)
    published = (0.5070751592371323, 0.48654887331495095, 0.4409178433670343)
    assert mean == pytest.approx(published, abs=1e-14)
    published = (0.2673342858792401, 0.2564384629170883, 0.27615047132568404)
    assert std == pytest.approx(published, abs=1e-14)
    assert data.normalization(cifar100)[0] == pytest.approx(mean, abs=1e-8)
    assert data.normalization(cifar100)[1] == pytest.approx(std, abs=1e-8)
    assert cifar100.classes[19] == "cattle" and len(set(cifar100.classes)) == 100
    assert list(cifar100.classes) == sorted(cifar100.classes)


def test_subset_of_twenty_classes(cifar100):
    part = data.subset(cifar100, train=10_000, test=1_000, classes=20)
    assert np.bincount(part.train_label).tolist() == [500] * 20
    assert np.bincount(part.test_label).tolist() == [50] * 20
    assert part.classes == cifar100.classes[:20]
    rows = [i for i, c in enumerate(cifar100.train_label) if c < 20]
    np.testing.assert_array_equal(part.train_image, cifar100.train_image[rows])
    np.testing.assert_array_equal(part.train_label, cifar100.train_label[rows])


def test_classes_from_a_later_one(monkeypatch):
    ds = data.synthetic(train=60, test=30, classes=6, size=4)
    monkeypatch.setattr(sources, "load", lambda *_: ds)
    c = config_lib.base().data
    c.name, c.classes, c.first_class = "mnist", 2, 3
    part = sources.load_part(c, lambda *_, **__: contextlib.nullcontext())
    assert part.classes == ("class_3", "class_4")
    kept = np.isin(ds.train_label, (3, 4))
    np.testing.assert_array_equal(part.train_image, ds.train_image[kept])
    np.testing.assert_array_equal(part.train_label, ds.train_label[kept] - 3)


def test_subset_relabels_and_is_stratified():
    ds = data.synthetic(train=103, test=40, classes=5, size=4)
    part = data.subset(ds, train=30, test=6, classes=["class_3", 0, "class_1"])
    assert part.classes == ("class_3", "class_0", "class_1")
    assert np.bincount(part.train_label).tolist() == [10, 10, 10]
    assert np.bincount(part.test_label).tolist() == [2, 2, 2]
    old = [3, 0, 1]
    for new, c in enumerate(old):  # the first ones of the class, in order
        first = ds.train_image[ds.train_label == c][:10]
        np.testing.assert_array_equal(part.train_image[part.train_label == new], first)
    shares = data.subset(ds, train=50)  # 103 images are 21, 21, 21, 20, 20 of a class
    assert np.bincount(shares.train_label).tolist() == [10, 10, 10, 10, 10]
    everything = data.subset(ds)
    np.testing.assert_array_equal(everything.train_image, ds.train_image)


@pytest.mark.parametrize("train", range(1, 15))
def test_subset_shares_are_off_by_less_than_one(train):
    label = np.array([0] * 7 + [1] * 4 + [2] * 3, np.int32)
    image = np.zeros((14, 4, 4, 1), np.uint8)
    ds = data.Dataset(image, label, image, label, ("a", "b", "c"), "x")
    count = np.bincount(data.subset(ds, train=train).train_label, minlength=3)
    assert count.sum() == train
    assert (abs(count - train * np.array([7, 4, 3]) / 14) < 1).all()


@pytest.mark.parametrize(
    "wanted, says",
    [
        (dict(train=257), "train=257: synthetic holds 256"),
        (dict(test=0), "test=0"),
        (dict(classes=9), "classes=9: synthetic has 4"),
        (dict(classes=["class_9"]), "no class 'class_9'; did you mean 'class_"),
        (dict(classes=[4]), "no label 4, expected 0 to 3"),
        (dict(classes=[1, 1]), "none twice"),
    ],
)
def test_subset_errors(wanted, says):
    with pytest.raises(ValueError, match=says) as error:
        data.subset(data.synthetic(), **wanted)
    one_line(error)


def test_statistics_against_float64():
    image = np.random.default_rng(1).integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    mean, std = data.statistics(image)
    x = image.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, x.std(0), rtol=1e-12)
    with pytest.raises(ValueError, match="channel 0 has the one value 7"):
        data.statistics(np.full((2, 2, 2, 1), 7, np.uint8))


def test_synthetic_is_seeded_and_learnable():
    ds = data.load("synthetic", train=200, test=100, size=8, channels=1, classes=5)
    again = data.synthetic(train=200, test=100, size=8, channels=1, classes=5)
    np.testing.assert_array_equal(ds.train_image, again.train_image)
    other = data.synthetic(train=200, test=100, size=8, channels=1, classes=5, seed=1)
    assert (ds.train_image != other.train_image).any()
    x = ds.train_image.reshape(200, -1).astype(float)
    centres = np.stack([x[ds.train_label == c].mean(0) for c in range(5)])
    y = ds.test_image[:, :, ::-1].reshape(100, -1).astype(float)  # flipped
    guess = np.square(y[:, None] - centres).sum(-1).argmin(1)
    assert (guess == ds.test_label).mean() > 0.9
    with pytest.raises(ValueError, match="size=6, expected a multiple of 4"):
        data.synthetic(size=6)
