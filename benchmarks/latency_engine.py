"""Our side of benchmarks/latency_lce.py: starts it, tells it what to do."""

import json
import pathlib
import subprocess
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks.latency_rows import Row
from quantnet_jax import deploy


class Engine:
    """The Larq Compute Engine in a process of its own: benchmarks/latency_lce.py."""

    def __init__(self, python: str, network: deploy.Predictor, threads: int) -> None:
        worker = pathlib.Path(__file__).with_name("latency_lce.py")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [python, worker], stderr=subprocess.DEVNULL, **pipes
        )
        self.folder = tempfile.TemporaryDirectory()
        self.kernel = ""
        write_signs(self.path("network.npz"), network)
        self.ask("network", self.path("network.npz"), threads)

    def path(self, name: str) -> str:
        """Of a file that both processes know."""
        return str(pathlib.Path(self.folder.name) / name)

    def ask(self, *words: object) -> Any:
        """The answer to a command."""
        try:
            print(*words, sep="\t", file=self.process.stdin, flush=True)
            line = self.process.stdout.readline() if self.process.stdout else ""
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise ValueError(f"{self.process.args[0]}: no answer to {words[0]!r}")
        return json.loads(line)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Of a batch, which `seconds` then times."""
        np.save(self.path("images.npy"), images)
        names = self.path("images.npy"), self.path("logits.npy")
        self.kernel = self.ask("images", *names)
        return np.load(names[1])

    def row(self) -> Row:
        """What is timed."""
        return Row(
            self.logits,
            "W1A1 as floats",
            "the same weights in a process of its own on the same cores, the faster of "
            "its kernels for each batch; images are turned beforehand",
            lambda: self.ask("time"),
        )

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()
        self.folder.cleanup()


def write_signs(path: str, predictor: deploy.Predictor) -> None:
    """Writes the network of signs as arrays: binary kernels as +1 and -1 with a
    'factor' for each channel beside them, all others as they are; mean, std."""
    given = predictor.spec["input"]
    arrays = {k: np.asarray(given[k], np.float32) for k in ("mean", "std")}
    values = deploy.float_tree(predictor.params)
    for key, x in jax.tree_util.tree_flatten_with_path(values)[0]:
        name, x = jax.tree_util.keystr(key, simple=True, separator="/"), np.asarray(x)
        layer = name.removesuffix("/kernel")
        if layer in predictor.countable:
            arrays[f"{layer}/factor"] = np.abs(x).max((0, 1, 2))
            x = np.where(x > 0, np.float32(1), np.float32(-1))
        arrays[name] = x
    np.savez(path, **arrays)
