"""Times the way from a JPEG to a random crop: ours, plain Pillow, TensorFlow.

    python benchmarks/decode.py             # writes results/decode.json

Each decodes the same pictures to the same boxes, 224 pixels wide. `pillow` decodes the
whole picture, cuts and resizes it; `ours` is `data.jpeg.decode_train`; `tensorflow`,
with `--tensorflow=PYTHON`, is `decode_and_crop_jpeg` and `resize` under tf.data, in a
process of that interpreter (see benchmarks/decode_tensorflow.py). They take turns over
all pictures, the first one changing, with one thread each. Rates are pictures by second
of processor time, so that others on the machine disturb little; medians over the turns.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/decode.py` finds only benchmarks/

import numpy as np  # noqa: E402
from PIL import Image, features  # noqa: E402

from quantnet_jax.data import jpeg, region, turbo  # noqa: E402
from quantnet_jax.logging import records  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402

IMAGES = ROOT.parent / "shared/data/imagenet-sample/imagenet_sample_51.zip"
PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer", "turbojpeg")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/decode.py", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--images", default=str(IMAGES), help="zip archive of JPEGs")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop")
    parser.add_argument("--repeats", type=int, default=40, help="turns")
    parser.add_argument("--tensorflow", default="", help="interpreter that has it")
    parser.add_argument("--note", default="", help="what to say of the machine")
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "decode.json"), help="JSON file"
    )
    args = parser.parse_args(argv)
    try:
        result = measure(args)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if argv is None else argv
    result["command"] = shlex.join(["python", "benchmarks/decode.py", *words])
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    records.write_json(args.out, result)
    print(table(result))
    print(f"\nwrote {args.out}")
    return 0


def measure(args) -> dict:
    """Everything that the JSON file holds but the command."""
    if args.repeats < 2 or args.size < 1:
        raise ValueError(
            f"--repeats={args.repeats} --size={args.size}, expected at least 2 and 1"
        )
    names, contents = read(args.images)
    load = {"before": os.getloadavg()}
    with tensorflow(args, names) as (ask, versions):
        programs = {"pillow": plain, "ours": ours}
        seconds, wall = take_turns(programs, ask, contents, args)
    count = len(contents)
    rates: dict[str, float | None] = {
        name: count / statistics.median(times) for name, times in seconds.items()
    }
    found = provenance()
    versions |= {name: version(name) for name in PACKAGES}
    found["versions"] |= versions | {"libjpeg-turbo": features.version("libjpeg_turbo")}
    return {
        "benchmark": "JPEGs decoded to random crops by second of processor time",
        "images_per_second_per_core": {"tensorflow": None} | rates,
        "ours_over": {
            name: statistics.median(np.divide(times, seconds["ours"]).tolist())
            for name, times in seconds.items()
            if name != "ours"
        },
        "spread": {name: spread(count, times) for name, times in seconds.items()},
        "images_per_second_of_wall_time": {
            name: count / statistics.median(times) for name, times in wall.items()
        },
        "threads": scale(contents, args),
        "distance_to_pillow": distance(contents, args.size),
        "fast_path": sum(turbo.header(x) is not None for x in contents),
        "cut": sum(region.size(x) is not None for x in contents),
        "images": count,
        "bytes": sum(map(len, contents)),
        "size": args.size,
        "repeats": args.repeats,
        "note": args.note,
        "cores": len(os.sched_getaffinity(0)),
        "load": load | {"after": os.getloadavg()},
        **found,
    }


def read(path: str) -> tuple[list[str], list[bytes]]:
    """Names and contents of the JPEGs of an archive."""
    with zipfile.ZipFile(path) as archive:
        ends = (".jpeg", ".jpg")
        names = [n for n in archive.namelist() if n.lower().endswith(ends)]
        contents = [archive.read(name) for name in names]
    if not names:
        raise ValueError(f"--images={path}: it holds no .jpeg or .jpg file")
    return names, contents


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def box_of(size: tuple[int, int], position: int) -> tuple[int, int, int, int]:
    """The box that `decode_train` takes of a picture of a size."""
    return jpeg._box(*size, 0, position)


def plain(content: bytes, size: int, position: int) -> np.ndarray:
    """The usual path: decode the whole picture, cut it, resize what is left."""
    image = Image.open(io.BytesIO(content))
    left, top, width, height = box_of(image.size, position)
    image = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def ours(content: bytes, size: int, position: int) -> np.ndarray:
    return jpeg.decode_train(content, size, seed=0, position=position)


@contextlib.contextmanager
def tensorflow(args, names: list[str]):
    """Yields (`ask(boxes) -> seconds of processor and wall time`, its versions).

    A process of another interpreter takes its turn when asked; (None, {}) without one.
    """
    if not args.tensorflow:
        yield None, {}
        return
    script = pathlib.Path(__file__).with_name("decode_tensorflow.py")
    with subprocess.Popen(
        [args.tensorflow, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        into, out = process.stdin, process.stdout

        def ask(task):
            try:
                into.write(json.dumps(task) + "\n")
                into.flush()
                return json.loads(out.readline())
            except (OSError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"--tensorflow={args.tensorflow}: it ended without an answer, "
                    "expected an interpreter that can import tensorflow"
                ) from error

        try:
            archive = str(pathlib.Path(args.images).resolve())
            yield ask, ask({"archive": archive, "names": names, "size": args.size})
        finally:
            process.kill()
            with contextlib.suppress(OSError):  # what was not written is lost
                into.close()


def take_turns(programs, ask, contents, args):
    """Seconds of each turn, of processor time and of wall time, by program."""
    names = [*programs, *(["tensorflow"] if ask else [])]
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    sizes = [Image.open(io.BytesIO(content)).size for content in contents]
    for turn in range(-1, args.repeats):  # the first is not counted
        positions = range(turn * len(contents), (turn + 1) * len(contents))
        positions = [p % 2**32 for p in positions]
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if name in programs:
                began, busy = time.perf_counter(), time.thread_time()
                for content, position in zip(contents, positions, strict=True):
                    programs[name](content, args.size, position)
                took = time.thread_time() - busy, time.perf_counter() - began
            else:
                pairs = zip(sizes, positions, strict=True)
                took = ask([box_of(*pair) for pair in pairs])
            if turn >= 0:
                cpu[name].append(took[0])
                wall[name].append(took[1])
    return cpu, wall


def spread(count: int, times: list[float]) -> dict[str, float]:
    """Slowest, quartiles and fastest, in pictures by second."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    values = dict(slowest=max(times), lower=high, upper=low, fastest=min(times))
    return {name: count / seconds for name, seconds in values.items()}


def scale(contents, args) -> dict:
    """Ours with one and with two threads, by wall time, taking turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}

    def decode_all(share):
        for position, content in enumerate(share):
            ours(content, args.size, position)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for turn in range(args.repeats):
            for threads in (1, 2) if turn % 2 else (2, 1):
                shares = [contents[first::threads] for first in range(threads)]
                began = time.perf_counter()
                list(pool.map(decode_all, shares))
                rates[threads].append(len(contents) / (time.perf_counter() - began))
    medians = {str(n): statistics.median(x) for n, x in rates.items()}
    paired = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    return {
        "images_per_second": medians,
        "two_over_one": statistics.median(paired),
        "best_two_over_best_one": max(rates[2]) / max(rates[1]),
    }


def distance(contents, size: int) -> dict[str, float]:
    """Mean absolute difference of ours and Pillow's crops, in levels of 255."""
    found = [
        np.abs(ours(c, size, i).astype(int) - plain(c, size, i)).mean()
        for i, c in enumerate(contents)
    ]
    return {"mean": float(np.mean(found)), "worst_image": float(np.max(found))}


def table(result: dict) -> str:
    """The text that the command prints."""
    rates, over = result["images_per_second_per_core"], result["ours_over"]
    rows = [
        (name, f"{rate:.0f}", f"{over[name]:.2f}" if name in over else "")
        for name, rate in rates.items()
        if rate is not None
    ]
    head = (
        f"{result['images']} JPEGs to {result['size']} x {result['size']}, medians of "
        f"{result['repeats']}; two threads over one: "
        f"{result['threads']['two_over_one']:.2f}\n"
    )
    titles = ("decoder", "images by second and core", "ours is faster by")
    return head + "\n" + records.table(rows, titles)


if __name__ == "__main__":
    sys.exit(main())
