"""The TensorFlow side of benchmarks/decode.py, in an environment of its own.

    python -m venv tensorflow
    tensorflow/bin/pip install tensorflow-cpu
    python benchmarks/decode.py --tensorflow=tensorflow/bin/python

Reads lines of JSON from standard input and answers each with one: first the archive and
the size, then the boxes of each turn. It imports nothing of this project.
"""

import importlib.metadata
import json
import os
import sys
import time
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402


def main() -> int:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    task = json.loads(sys.stdin.readline())
    with zipfile.ZipFile(task["archive"]) as archive:
        contents = [archive.read(name) for name in task["names"]]
    decode = make_decode(task["size"])
    packages = importlib.metadata.distributions()
    names = {d.metadata["Name"] for d in packages}
    (name,) = names & {"tensorflow", "tensorflow-cpu"}
    answer({name: importlib.metadata.version(name)})
    for line in sys.stdin:
        data = tf.data.Dataset.from_tensor_slices((contents, json.loads(line)))
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        data = data.repeat(2).map(decode).with_options(options)
        batches = iter(data)
        for _ in contents:  # once for warming up
            next(batches)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in contents:
            next(batches)
        answer([time.process_time() - cpu, time.perf_counter() - began])
    return 0


def make_decode(size: int):
    """(content, box) -> uint8 [size, size, 3], as ImageNet inputs of TensorFlow do."""

    def decode(content, box):
        left, top, width, height = tf.unstack(box)
        crop = tf.stack([top, left, height, width])
        image = tf.image.decode_and_crop_jpeg(content, crop, channels=3)
        image = tf.image.resize(image, [size, size], "bilinear")
        return tf.cast(tf.round(image), tf.uint8)

    return decode


def answer(value) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    sys.exit(main())
