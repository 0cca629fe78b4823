"""The network of signs of benchmarks/latency.py in the Larq Compute Engine.

    python -m venv lce
    lce/bin/pip install larq==0.14.0 larq-compute-engine==0.16.0 tensorflow-cpu==2.15.1
    python benchmarks/latency.py --lce-python=lce/bin/python

It needs TensorFlow, so it runs in an environment of its own, imports nothing of this
project, and is told what to do line by line on standard input (see `main`).

TensorFlow pads an image of even size at stride 2 behind its end, our networks before
its start. So kernels are turned by 180 degrees here, and images before they are timed:
the sums are then the same, and so are the logits, unless rounding turns a sign: the
engine joins scale and normalization to one factor. (Of 64 images one differed; layer by
layer, its first sign that did belonged to a number of 4e-7.) The engine is made for
ARM: its authors say of its x86 kernels that they are not tuned.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import larq  # noqa: E402
import larq_compute_engine as lce  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from larq_compute_engine.tflite.python.interpreter import Interpreter  # noqa: E402

KERNELS = {
    "default": {},
    "XNNPACK": {"use_xnnpack": True},
    "indirect": {"use_indirect_bgemm": True},
    "indirect, XNNPACK": {"use_indirect_bgemm": True, "use_xnnpack": True},
}
TRIALS = 3


def main() -> None:
    """Answers each line of standard input with one of JSON.

    'network FILE THREADS' reads a file of `latency_engine.write_signs`; 'images IN OUT'
    reads a batch, chooses the fastest of the `KERNELS` for it and writes its logits;
    'time' runs that batch twice and answers with the seconds of the second run;
    'processor' with the seconds of processor time that were spent so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the converter prints
    weights, threads, engine, images = {}, 1, None, None
    for line in sys.stdin:
        command, *words = line.rstrip("\n").split("\t")
        answer: object = None
        if command == "network":
            weights, threads = dict(np.load(words[0])), int(words[1])
        elif command == "images":
            images = np.ascontiguousarray(np.load(words[0])[:, ::-1, ::-1])
            packed = lce.convert_keras_model(build(weights, images.shape))
            answer, engine = fastest(packed, threads, images)
            np.save(words[1], engine.interpreter.predict([images])[0])
        elif command == "time":
            engine.interpreter.predict([images])
            answer = seconds(engine, images)
        elif command == "processor":
            answer = time.process_time()
        print(json.dumps(answer), file=answers, flush=True)


def fastest(packed: bytes, threads: int, images: np.ndarray) -> tuple[str, Interpreter]:
    """(name, engine) of the fastest one of the `KERNELS`."""
    times, engines = {}, {}
    for name, options in KERNELS.items():
        engines[name] = Interpreter(packed, num_threads=threads, **options)
        engines[name].interpreter.predict([images])
        times[name] = min(seconds(engines[name], images) for _ in range(TRIALS))
    best = min(times, key=times.get)
    return best, engines[best]


def seconds(engine: Interpreter, images: np.ndarray) -> float:
    """Of one call with the whole batch (`Interpreter.predict` goes image by image)."""
    began = time.perf_counter()
    engine.interpreter.predict([images])
    return time.perf_counter() - began


def build(weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> tf.keras.Model:
    """The Keras model of a batch of uint8 images; see `latency_engine.write_signs`."""
    kernels = {}

    def affine(x, factor, name):
        return x * tf.constant(factor * weights[f"{name}/scale"]) + tf.constant(
            weights[f"{name}/bias"]
        )

    def convolution(x, path, layer=tf.keras.layers.Conv2D, **options):
        size, _, _, channels = weights[f"{path}/kernel"].shape
        name = path.replace("/", "_")
        kernels[name] = weights[f"{path}/kernel"][::-1, ::-1]
        return layer(
            channels, size, padding="same", use_bias=False, name=name, **options
        )(x)

    images = tf.keras.Input(shape[1:], shape[0], dtype="uint8")
    x = tf.cast(images, tf.float32) / 255.0
    x = (x - tf.constant(weights["mean"])) / tf.constant(weights["std"])
    large = weights["stem/kernel"].shape[0] == 7
    x = convolution(x, "stem", strides=2 if large else 1)
    x = tf.clip_by_value(affine(x, np.float32(1), "stem_bn"), -1.0, 1.0)
    if large:
        x = tf.keras.layers.MaxPool2D(3, 2, "same")(x)
    for block in sorted({k.split("/")[0] for k in weights if k.startswith("stage")}):
        for number in "12":
            path = f"{block}/conv{number}"
            down = number == "1" and block[5:] != "1_block0" and block.endswith("0")
            y = convolution(
                x,
                path,
                larq.layers.QuantConv2D,
                strides=2 if down else 1,
                input_quantizer="ste_sign",
                kernel_quantizer="ste_sign",
                kernel_constraint="weight_clip",
            )
            y = affine(y, weights[f"{path}/factor"], f"{block}/bn{number}")
            if down:
                x = x[:, 1::2, 1::2]
            if down and f"{block}/shortcut/kernel" in weights:
                x = convolution(x, f"{block}/shortcut")
                x = affine(x, np.float32(1), f"{block}/shortcut_bn")
            elif down:
                extra = y.shape[-1] - x.shape[-1]
                x = tf.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))
            x = tf.clip_by_value(y + x, -1.0, 1.0)
    x = tf.reduce_mean(x, (1, 2))
    x = tf.matmul(x, tf.constant(weights["head/kernel"]))
    model = tf.keras.Model(images, x + tf.constant(weights["head/bias"]))
    for name, kernel in kernels.items():
        model.get_layer(name).set_weights([kernel])
    return model


if __name__ == "__main__":
    main()
