"""Batches of device-resident or streamed datasets, by one interface."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import data as qdata
from quantnet_jax.common import files
from quantnet_jax.config import Config
from quantnet_jax.config.ranges import STREAMED, TFDS
from quantnet_jax.data.sets import folders
from quantnet_jax.distributed.runners import Runner
from quantnet_jax.training.build_check import named
from quantnet_jax.training.parts import with_margin

PyTree = Any
SAMPLE = 64
"""Largest number of examples in a `Feed.sample`."""


class Feed(NamedTuple):
    """The examples of a run.

    Attributes:
      info: JSON data of the dataset, for its task.
      shape: (H, W, C) of the images.
      mean, std: of each channel, of pixels scaled to [0, 1].
      train_size, test_size: numbers of examples.
      train_data, test_data: NumPy arrays to be put on every device, or None if
        streamed.
      prepare: `(data, batch, *, seed, train) -> {'image', ...}`, on the devices.
      train: `first step -> endless iterator` of this process' batches.
      test: `() -> iterator` over every test example once.
      sample: `() -> batch` of the first training examples, at most `SAMPLE`: the same
        on every process, with arrays of its own, as of a streamed dataset.
      unreadable: `() -> int`, how many unreadable examples this process has met.
    """

    info: Mapping[str, Any]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    test_size: int
    train_data: PyTree
    test_data: PyTree
    prepare: Callable[..., dict[str, Any]]
    train: Callable[[int], Iterator[dict[str, np.ndarray]]]
    test: Callable[[], Iterator[dict[str, np.ndarray]]]
    sample: Callable[[], dict[str, np.ndarray]]
    unreadable: Callable[[], int] = lambda: 0

    def held(self) -> dict[str, PyTree] | None:
        """'train' and 'test': the examples; None if streamed."""
        if self.train_data is None:
            return None
        return {"train": self.train_data, "test": self.test_data}


def with_rows(batch: Mapping[str, Any], data: PyTree) -> dict[str, Any]:
    """A batch with its examples, in place of the 'index' of those in memory.

    Args:
      batch: as it is where it has no 'index': its examples were streamed.
      data: `train_data` or `test_data` of the feed.
    """
    if "index" not in batch:
        return dict(batch)
    rows = np.asarray(batch["index"])
    found = {name: x[rows] for name, x in data.items()}
    return {k: v for k, v in batch.items() if k != "index"} | found


def make_feed(config: Config, runner: Runner) -> Feed:
    """The feed that `config.data` describes, for this process.

    A name of `data.NAMES` is held in memory; 'imagenet2012', and 'tfds:NAME' for any
    other TFDS dataset of images, is streamed; 'folder' is either, by its size.

    Raises:
      FileNotFoundError, ValueError: a file is missing or damaged, or the dataset
        does not fit the configuration.
    """
    c = config.data
    unreadable = qdata.Unreadable(c.max_unreadable)  # of both splits together
    if c.name in STREAMED or c.name.startswith(TFDS):
        name, folder = c.name.removeprefix(TFDS), c.folder or None
        with named(f"data.name={c.name!r}, data.folder={c.folder!r}", name="data.name"):
            parts = ("train", "validation")
            train, test = (qdata.load_source(name, part, folder) for part in parts)
        return _streamed(config, runner, train, test, unreadable)
    with named(f"data.folder={c.folder!r}"):
        folder = files.as_path(c.folder) if files.in_bucket(c.folder) else None
    dataset = qdata.load_part(c, named, folder)
    if c.name == qdata.FOLDER:
        with named(f"data.folder={c.folder!r:.200}"):
            if _fits(dataset, c.image_size):
                dataset = folders.decoded(dataset, c.image_size, unreadable)
            else:
                train, test = folders.sources(dataset)
                return _streamed(config, runner, train, test, unreadable)
    return _in_memory(config, runner, dataset)


def _fits(paths: qdata.Dataset, size: int) -> bool:
    """Whether the decoded images of a folder are held in memory."""
    height, width = (size, size) if size else folders.first_size(paths)
    count = len(paths.train_image) + len(paths.test_image)
    if (needed := count * height * width * 3) <= folders.IN_MEMORY:
        return True
    if not size:
        raise ValueError(
            f"{count} images of {width} x {height} pixels take {needed / 1e9:.1f} GB; "
            "set data.image_size, to stream crops of that size"
        )
    return False


def _in_memory(config: Config, runner: Runner, dataset: qdata.Dataset) -> Feed:
    c = config.data
    shape = dataset.test_image.shape[1:]
    if c.image_size and shape[:2] != (c.image_size, c.image_size):
        raise ValueError(
            f"data.image_size={c.image_size}, but the images of {c.name!r} are "
            f"{shape[0]} x {shape[1]} pixels; set it to that or to 0"
        )
    if c.pad >= min(shape[:2]):
        raise ValueError(
            f"data.pad={c.pad}, expected less than the image size {min(shape[:2])}"
        )
    if dataset.train_target is not None and c.pad:
        raise ValueError(
            f"data.pad={c.pad}: the images of {c.name!r} have targets, which are not "
            "padded; use 0, and data.crop"
        )
    smallest = min(dataset.train_image.shape[1:3])
    if c.crop > smallest:
        raise ValueError(
            f"data.crop={c.crop}, expected at most {smallest}, the smaller side of the "
            "training images"
        )
    dataset = with_margin(config, dataset)
    mean, std = qdata.normalization(dataset)
    process = {
        "process_index": runner.process_index,
        "process_count": runner.process_count,
    }
    train_size, test_size = len(dataset.train_image), len(dataset.test_image)

    def train(step):
        while True:
            yield qdata.train_indices(
                step,
                size=train_size,
                batch_size=config.batch_size,
                seed=config.seed,
                **process,
            )
            step += 1

    def sample():
        examples = min(SAMPLE, train_size)
        batch = qdata.train_indices(
            0, size=train_size, batch_size=examples, seed=config.seed
        )
        rows = qdata.split(dataset, "train")
        rows = {name: x[batch["index"]] for name, x in rows.items()}
        return batch | (_centers(rows, c.crop) if c.crop else rows)

    return Feed(
        info=dataset.info,
        shape=dataset.test_image.shape[1:],
        mean=mean,
        std=std,
        train_size=train_size,
        test_size=test_size,
        train_data=qdata.split(dataset, "train"),
        test_data=qdata.split(dataset, "test"),
        prepare=_prepare(config, mean, std, pad=c.pad, crop=c.crop),
        train=train,
        test=lambda: test_rows(test_size, config, runner),
        sample=sample,
    )


def test_rows(size: int, config: Config, runner: Runner) -> Iterator:
    """This process' batches of the rows of a dataset, each row once."""
    return qdata.eval_batches(
        size,
        config.eval_batch_size,
        process_index=runner.process_index,
        process_count=runner.process_count,
    )


def _centers(rows: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Images, and targets, without what is outside of their middle squares."""
    found, scale = dict(rows), 1
    for name in ("image", "target"):
        if name in rows:
            scale = rows[name].shape[1] // rows["image"].shape[1]
            corner = [scale * ((n - size) // 2) for n in rows["image"].shape[1:3]]
            y, x = (slice(start, start + scale * size) for start in corner)
            found[name] = rows[name][:, y, x]
    return found


def _prepare(config: Config, mean, std, *, pad: int, crop: int = 0) -> Callable:
    """From a batch to normalized images; all but those is for training alone."""

    def prepare(data, batch, *, seed, train):
        return qdata.prepare(
            data,
            batch,
            seed=seed,
            train=train,
            pad=pad if train else 0,
            flip=config.data.flip and train,
            mean=mean,
            std=std,
            dtype=jnp.dtype(config.dtype),
            crop=crop if train else 0,
        )

    return prepare


def _streamed(
    config: Config, runner: Runner, train_source, test_source, unreadable
) -> Feed:
    c = config.data
    size = c.image_size or 224
    mean, std = qdata.STATISTICS["imagenet2012"]  # of photographs in general
    common = {
        "size": size,
        "process_index": runner.process_index,
        "process_count": runner.process_count,
        "workers": c.workers,
        "unreadable": unreadable,
    }
    return Feed(
        info=qdata.source_info(train_source),
        shape=(size, size, 3),
        mean=mean,
        std=std,
        train_size=len(train_source),
        test_size=len(test_source),
        train_data=None,
        test_data=None,
        prepare=_prepare(config, mean, std, pad=0),
        train=lambda step: qdata.train_stream(
            train_source,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=step,
            **common,
        ),
        test=lambda: qdata.eval_stream(
            test_source,
            batch_size=config.eval_batch_size,
            resize=round(size * 256 / 224),  # the same part of the image at any size
            **common,
        ),
        sample=lambda: next(
            qdata.train_stream(
                train_source,
                batch_size=min(SAMPLE, len(train_source)),
                seed=config.seed,
                size=size,
                threads=1,
                unreadable=unreadable,
            )
        ),
        unreadable=lambda: unreadable.count,
    )


def dispatches(
    feed: Feed, runner: Runner, first: int, counts: Iterable[int]
) -> Iterator[PyTree]:
    """Sharded training batches; those of several steps are stacked in front.

    Args:
      feed: the data.
      runner: that will take the batches.
      first: steps done.
      counts: how many steps each dispatch takes.
    """
    stream = feed.train(first)
    for count in counts:
        if count == 1:
            yield runner.shard(next(stream))
        else:
            batches = [next(stream) for _ in range(count)]
            stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
            yield runner.shard(stacked, axis=1)
