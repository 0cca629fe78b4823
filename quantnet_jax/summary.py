"""Bits, bytes and multiply-accumulates of a network, layer by layer.

    python -m quantnet_jax.summary [--config=NAME[:VARIANT]] [--config.KEY=VALUE ...]
    python -m quantnet_jax.summary --workdir=DIR
    python -m quantnet_jax.summary --artifact=model.safetensors

Of a configuration (a file, or one that ships), of a run, or of an exported file or
zoo:NAME; each may be given without its flag, too. Nothing is trained: shapes suffice.
The payload is that of the exported file to the byte. Of a run it is its export, with
the bits that it learned; of one that has none, its latest checkpoint.
"""

import json
import os
import pathlib
import sys
from typing import Any

import jax

import quantnet_jax
from quantnet_jax import deploy
from quantnet_jax.common import command
from quantnet_jax.common.files import as_path
from quantnet_jax.common.modules import make_callable
from quantnet_jax.core.schedules import NOMINAL
from quantnet_jax.deploy import summary as summary_lib
from quantnet_jax.deploy.export import FILES
from quantnet_jax.zoo import PREFIX

PyTree = Any

IMAGES = {
    "bundled": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}
"""Shapes of the images of datasets that need not be read for a summary."""


def from_config(config: Any) -> tuple[PyTree, deploy.NetworkSpec]:
    """(packed parameters as shapes, spec) of the network that a configuration ships.

    Raises:
      ValueError, FileNotFoundError: the configuration is wrong, or a dataset that has
        to be read is missing.
    """
    from quantnet_jax import export
    from quantnet_jax.training import parts
    from quantnet_jax.trees import tree

    source = _source(config)
    task = parts.make_task(config, source)
    origin = {"method": config.quantizer.name, "data": config.data.name}
    spec = export.make_spec(config, task, source, origin=origin)
    key = jax.random.key(0)
    params = jax.eval_shape(spec.network().init, key, spec.input())["params"]
    quantizer = tree.tree_quantizer(parts.make_rules(config, NOMINAL), params)
    hard = lambda p: deploy.pack_tree(quantizer.hard(quantizer.init(key, p), p))
    return jax.eval_shape(hard, params), spec


def from_run(workdir: str) -> tuple[PyTree, deploy.NetworkSpec]:
    """As `from_config`, of the weights of a run's latest checkpoint."""
    from quantnet_jax import evaluate, export

    exp, state, _ = evaluate.restore(workdir)
    packed = deploy.pack_tree(jax.device_get(exp.deployed(state)))
    return packed, export.spec_of(exp, exp.config.quantizer.name)


def _source(config: Any) -> Any:
    """What a task is made from; reads data only where it must."""
    from quantnet_jax import data
    from quantnet_jax.distributed import runners
    from quantnet_jax.tasks import Source
    from quantnet_jax.training import feed

    c = config.data
    if c.name in IMAGES:
        names, shape = data.CLASSES[c.name], IMAGES[c.name]
        first = c.first_class
        info = {"classes": names[first : first + (c.classes or len(names))]}
    elif c.name == "imagenet2012":
        size = c.image_size or 224
        info, shape = {"classes": [str(n) for n in range(1000)]}, (size, size, 3)
    else:
        found = feed.make_feed(config, runners.make_runner("jit"))
        info, shape = found.info, found.shape
    # Mean and deviation change no size.
    return Source(lambda *_: {}, shape, (0.0,) * shape[2], (1.0,) * shape[2], info)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    overrides, words = command.overrides(words)
    parser = command.Parser("summary", __doc__)
    option = parser.add_argument
    option("what", nargs="?", help="one of the three below, without its flag")
    option("--config", metavar="NAME[:VARIANT]", help="a configuration; 'default'")
    option("--workdir", metavar="DIR", help="folder of a run")
    option("--artifact", metavar="FILE", help="a model.safetensors, or zoo:NAME")
    option("--json", action="store_true", help="print one JSON object")
    option("--batch", type=int, default=1, help="images")

    def work(args):
        if args.what:
            setattr(args, kind := _kind(args.what), getattr(args, kind) or args.what)
        given = [x for x in (args.what, args.config, args.workdir, args.artifact) if x]
        if len(set(given)) > 1:
            parser.error("expected one of --config, --workdir and --artifact")
        if overrides and (args.workdir or args.artifact):
            parser.error(f"{overrides[0]!r} changes a configuration alone")
        if args.batch < 1:
            parser.error(f"--batch={args.batch}: expected at least 1")
        params, spec = _network(args, overrides)
        summary = summary_lib.summarize_network(params, spec, args.batch)
        about = {key: spec.origin.get(key) for key in ("method", "data")}
        about = {"model": spec.model["name"], **about}
        if args.json:
            print(json.dumps(about | summary_lib.to_dict(summary), indent=2))
        else:
            print(", ".join(str(x) for x in about.values() if x), end="\n\n")
            print(summary)

    return command.run(parser, work, words)


def _kind(word: str) -> str:
    """The flag that a word without one belongs to."""
    if word.startswith(PREFIX) or word.endswith(".safetensors"):
        return "artifact"
    return "workdir" if pathlib.Path(word).is_dir() else "config"


def _network(args: Any, overrides: list[str]) -> tuple[PyTree, deploy.NetworkSpec]:
    artifact = args.artifact
    if args.workdir and (made := as_path(args.workdir) / "export" / FILES[0]).is_file():
        artifact = os.fspath(made)
    if artifact:
        # Codes, as in the file, whatever `load` would choose to run.
        loaded = quantnet_jax.load(artifact, popcount=False)
        return loaded.params, loaded.spec
    from quantnet_jax import config as config_lib
    from quantnet_jax.config import flags

    if args.workdir:
        config = config_lib.load(args.workdir)
        try:
            return from_run(args.workdir)
        except FileNotFoundError as e:
            text = "of its configuration, without pruned weights and learned widths"
            print(f"note: {command.describe(e)}; {text}", file=sys.stderr)
        return from_config(config)
    config = flags.read(args.config or "", overrides)
    config_lib.check(config)
    return from_config(config)


__wrapped__ = summary_lib.summarize
"""`quantnet_jax.summary(apply, tree, example)`, beside the command of that name."""
make_callable(__name__, __wrapped__)

if __name__ == "__main__":
    sys.exit(main())
