"""Times the way from a JPEG to a random crop: ours, and plain Pillow.

    python -m benchmarks.decode --images=FILE.zip

Both decode the same images to the same boxes. `pillow` decodes the whole image, cuts
and resizes it; `ours` is `data.jpeg.decode_train`. Rates are images by second of
processor time, so that others on the machine disturb little, with one thread. (Records
of TensorFlow and of two threads in results/decode.jsonl were measured by an earlier
version of this script.)
"""

import importlib.metadata
import io
import math
import statistics
import sys
import time
import zipfile

import numpy as np
from PIL import Image, features

from benchmarks import timing
from quantnet_jax.data import jpeg

PACKAGES = ("pillow", "cykooz-resizer", "turbojpeg")


def main(argv: list[str] | None = None) -> int:
    parser = timing.parser("benchmarks.decode", __doc__, repeats=40, load=math.inf)
    parser.add_argument("--images", required=True, help="zip archive of JPEGs")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop")
    args = parser.parse_args(argv)
    return timing.main(args, argv, measure)


def measure(args) -> dict:
    """Rates, how they compare, and how far the crops are from each other."""
    if args.size < 1:
        raise ValueError(f"--size={args.size}, expected at least 1")
    contents = read(args.images)
    count, turn = len(contents), iter(range(2**20))

    def call(decode):
        def cpu_seconds() -> float:
            first = next(turn) * count
            began = time.thread_time()
            for n, content in enumerate(contents):
                decode(content, args.size, first + n)
            return time.thread_time() - began

        return cpu_seconds

    calls = {"pillow": call(plain), "ours": call(ours)}
    seconds = timing.interleaved(calls, args.repeats, warm_up=1)
    rates = {name: count / statistics.median(x) for name, x in seconds.items()}
    found = timing.summary(seconds, "ours")
    for name, rate in rates.items():
        print(f"{name:10s}{rate:8.0f} images by second and core")
    return {
        "images_per_second_per_core": rates,
        "ours_over": {"pillow": found["pillow"]["over_float_paired"]},
        "distance_to_pillow": distance(contents, args.size),
        "images": count,
        "bytes": sum(map(len, contents)),
        "size": args.size,
        "versions": versions(),
    }


def read(path: str) -> list[bytes]:
    """Contents of the JPEGs of an archive."""
    with zipfile.ZipFile(path) as archive:
        ends = (".jpeg", ".jpg")
        names = [n for n in archive.namelist() if n.lower().endswith(ends)]
        contents = [archive.read(name) for name in names]
    if not names:
        raise ValueError(f"--images={path}: it holds no .jpeg or .jpg file")
    return contents


def versions() -> dict[str, str | None]:
    """Of what decodes."""
    found = {"libjpeg-turbo": features.version("libjpeg_turbo")}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def plain(content: bytes, size: int, position: int) -> np.ndarray:
    """The usual path: decode the whole image, cut it, resize the crop."""
    image = Image.open(io.BytesIO(content))
    left, top, width, height = jpeg.training_box(*image.size, 0, position)
    image = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def ours(content: bytes, size: int, position: int) -> np.ndarray:
    """The same crop by our decoder."""
    return jpeg.decode_train(content, size, seed=0, position=position)


def distance(contents: list[bytes], size: int) -> dict[str, float]:
    """Mean absolute difference of ours and Pillow's crops, in levels of 255."""
    found = [
        np.abs(ours(c, size, i).astype(int) - plain(c, size, i)).mean()
        for i, c in enumerate(contents)
    ]
    return {"mean": float(np.mean(found)), "worst_image": float(np.max(found))}


if __name__ == "__main__":
    sys.exit(main())
