"""A tiny TFDS dataset of JPEGs, packed as ArrayRecord without TensorFlow."""

import importlib
import io
import sys
import zipfile

import numpy as np
from PIL import Image

BUILDER = '''
"""A builder as a user would write one: JPEG bytes in, ArrayRecord out."""
import io
import pathlib
import tensorflow_datasets as tfds
from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "jpegs"


class TinyJpegs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    NAMES = ("a", "b", "c")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=self.NAMES),
                "file_name": tfds.features.Text(),
            }),
        )

    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(s) for s in ("train", "validation")}

    def _generate_examples(self, split):
        for i, path in enumerate(sorted((FOLDER / split).iterdir())):
            yield i, {
                "image": io.BytesIO(path.read_bytes()),
                "label": i % len(self.NAMES),
                "file_name": path.name,
            }


class TinyPngs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(5, 4, 3)),
                "label": tfds.features.ClassLabel(names=["x", "y"]),
            }),
        )

    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(s) for s in ("train", "test")}

    def _generate_examples(self, split):
        for i in range({"train": 6, "test": 3}[split]):
            stream = io.BytesIO()  # TFDS itself encodes arrays with TensorFlow only
            Image.new("RGB", (4, 5), (10 * i,) * 3).save(stream, "PNG")
            stream.seek(0)
            yield i, {"image": stream, "label": i % 2}
'''


# The same with another name, and a class for each image.
MANY_LABELS = BUILDER.split("class TinyPngs")[0]
MANY_LABELS = MANY_LABELS.replace("TinyJpegs", "ManyLabels")
MANY_LABELS = MANY_LABELS.replace('("a", "b", "c")', "[str(i) for i in range(40)]")


def make_jpeg(width, height, seed, mode="RGB", **options):
    """A smooth random image, which JPEG changes little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    return encode(image, quality=95, **options)


def encode(image, kind="JPEG", **options):
    """The bytes of an image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


class ListSource(list):
    """A sequence with the batched read of TFDS sources."""

    def __getitems__(self, rows):
        return [self[r] for r in rows]


class Damaged:
    """A source in which some rows hold other bytes, or None for a broken record."""

    def __init__(self, source, contents):
        self.source, self.contents = source, contents

    def __len__(self):
        return len(self.source)

    def __getitems__(self, rows):
        examples = self.source.__getitems__(rows)
        if any(self.contents.get(row, b"") is None for row in rows):
            raise RuntimeError("data hash\nmismatch")
        return [
            example | {"image": self.contents.get(row, example["image"])}
            for row, example in zip(rows, examples, strict=True)
        ]


def pack(folder, builder, names, files):
    """Packs datasets of a builder's module as ArrayRecord.

    Args:
      folder: a new one, which must stay on `sys.path`.
      builder: text of a module.
      names: of its classes to build.
      files: {split: {file name: bytes}}.

    Returns:
      The data folder of TFDS.
    """
    for split, contents in files.items():
        (folder / "jpegs" / split).mkdir(parents=True)
        for name, content in contents.items():
            (folder / "jpegs" / split / name).write_bytes(content)
    module = f"{names[0]}_builder"
    (folder / f"{module}.py").write_text(builder)
    # Until the last test: worker processes inherit sys.path and import the builder too.
    sys.path.insert(0, str(folder))
    builders = importlib.import_module(module)
    for name in names:
        make = getattr(builders, name)
        builder = make(data_dir=folder / "data", file_format="array_record")
        builder.download_and_prepare()
    return folder / "data"


def make_set(folder):
    """Packs 'tiny_jpegs' and 'tiny_pngs'; the folder must stay on `sys.path`.

    Returns:
      (data folder of TFDS, {split: {file name: bytes}}).
    """
    files = {"train": {}, "validation": {}}
    for i in range(11):
        mode = "L" if i == 3 else "RGB"
        files["train"][f"t{i:02}.jpg"] = make_jpeg(60 + 7 * i, 90 - 4 * i, i, mode)
    for i in range(7):
        files["validation"][f"v{i}.jpg"] = make_jpeg(50 + 9 * i, 70, 100 + i)
    return pack(folder, BUILDER, ("TinyJpegs", "TinyPngs"), files), files


def make_real(archive, folder):
    """Real images as a TFDS dataset of 51: (data folder, {split: {name: bytes}})."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(n for n in opened.namelist() if n.endswith(".JPEG"))
        rows = [(n.replace("/", "_"), opened.read(n)) for n in names]
    assert len(rows) == 51
    files = {"train": dict(rows[:40]), "validation": dict(rows[40:])}
    return pack(folder, MANY_LABELS, ["ManyLabels"], files), files
