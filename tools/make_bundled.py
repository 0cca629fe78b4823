"""Makes the bundled file from the four original Fashion-MNIST files.

    python -m tools.make_bundled FOLDER [OUTPUT]

FOLDER holds the original idx files. Of each class the first 1,000 training and 200
test images in file order are kept, in their original relative order, and stored as four
idx files in a tar compressed with xz. The same input and liblzma give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np

from quantnet_jax.data.dataset import Dataset, subset
from quantnet_jax.data.sets.sources import BUNDLED_FILE, load

TRAIN, TEST = 10_000, 2_000


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an idx file of unsigned bytes."""
    shape = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def archive_bytes(dataset: Dataset) -> bytes:
    """The tar.xz of images [N, H, W, 1]: four idx files, no time stamp, no owner."""
    members = {
        "train-images-idx3-ubyte": dataset.train_image[..., 0],
        "train-labels-idx1-ubyte": dataset.train_label.astype(np.uint8),
        "t10k-images-idx3-ubyte": dataset.test_image[..., 0],
        "t10k-labels-idx1-ubyte": dataset.test_label.astype(np.uint8),
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, array in members.items():
            content = idx_bytes(array)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main(folder: str, output: str | Path = BUNDLED_FILE) -> None:
    """Writes the bundled file and prints its size and md5."""
    part = subset(load("fashion_mnist", folder), train=TRAIN, test=TEST)
    content = archive_bytes(part)
    Path(output).write_bytes(content)
    print(f"{output}: {len(content)} bytes, md5 {hashlib.md5(content).hexdigest()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_bundled",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("folder", help="holds the four original idx files")
    parser.add_argument("output", nargs="?", default=BUNDLED_FILE)
    args = parser.parse_args()
    try:
        main(args.folder, args.output)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
