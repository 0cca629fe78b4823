"""Bits, bytes and multiply-accumulates of a network, layer by layer.

    python -m quantnet_jax.summary [--config=FILE[:VARIANT]] [--config.a.b=VALUE ...]
    python -m quantnet_jax.summary --workdir=DIR
    python -m quantnet_jax.summary --artifact=model.safetensors

Of a configuration (default: configs/default.py), of a run, or of an exported file; with
--json as one JSON object. Nothing is trained: shapes suffice. The payload is that of
the exported file to the byte.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from quantnet_jax import deploy
from quantnet_jax.deploy import summary as summary_lib
from quantnet_jax.deploy.summary_text import to_text

PyTree = Any
ROOT = pathlib.Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs" / "default.py"

IMAGES = {
    "bundled": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}
"""Shapes of the images of datasets that need not be read for a summary."""


def read_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a file, read as `train.py` reads it.

    Args:
      path: 'FILE.py' or 'FILE.py:VARIANT'.
      overrides: words such as '--config.model.width=8'.

    Raises:
      ValueError: in one line, what is wrong.
    """
    from absl import flags
    from ml_collections import config_flags

    from quantnet_jax import config as config_lib
    from quantnet_jax.config import flags as command_line

    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # so that a file finds `configs.common`
    values, words = flags.FlagValues(), ["summary", f"--config={path}", *overrides]
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=words
    )
    try:
        command_line.parse(words, values, holder, path)
    except SystemExit as e:
        raise ValueError(str(e).removeprefix("error: ")) from None
    config_lib.check(holder.value)
    return holder.value


def from_config(config: Any) -> tuple[PyTree, deploy.NetworkSpec]:
    """(packed parameters as shapes, spec) of the network that a configuration ships.

    Raises:
      ValueError, FileNotFoundError: the configuration is wrong, or a dataset that has
        to be read is missing.
    """
    from quantnet_jax import export
    from quantnet_jax.core import tree
    from quantnet_jax.training import parts

    source = _source(config)
    task = parts.make_task(config, source)
    parts.make_activation(config)  # refuses what does not fit the network
    origin = {"method": config.quantizer.name, "data": config.data.name}
    spec = export.make_spec(config, task, source, origin=origin)
    key = jax.random.key(0)
    params = jax.eval_shape(spec.network().init, key, spec.input())["params"]
    quantizer = tree.tree_quantizer(parts.make_rules(config, 1), params)
    hard = lambda p: deploy.pack_tree(quantizer.hard(quantizer.init(key, p), p))
    return jax.eval_shape(hard, params), spec


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
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.summary",
        description=str(__doc__).splitlines()[0],
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--config", help="FILE.py or FILE.py:VARIANT; configs/default.py"
    )
    source.add_argument("--workdir", help="folder of a run")
    source.add_argument("--artifact", help="an exported model.safetensors")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--batch", type=int, default=1, help="images; 1")
    args, overrides = parser.parse_known_args(argv)
    sources = args.config or args.workdir or args.artifact
    if not sources and not DEFAULT_CONFIG.is_file():  # not in an installed package
        parser.error("expected --config, --workdir or --artifact")
    of_config = not (args.workdir or args.artifact)
    wrong = [x for x in overrides if not (of_config and x.startswith("--config."))]
    if wrong:
        parser.error(f"unexpected argument {wrong[0]!r}")
    if args.batch < 1:
        parser.error(f"--batch={args.batch}, expected at least 1")
    try:
        if args.artifact:
            # Codes, as in the file, whatever `load` would choose to run.
            loaded = deploy.load(args.artifact, popcount=False)
            params, spec = loaded.params, loaded.spec
        elif args.workdir:
            from quantnet_jax import config as config_lib

            params, spec = from_config(config_lib.load(args.workdir))
        else:
            config = read_config(args.config or str(DEFAULT_CONFIG), overrides)
            params, spec = from_config(config)
        summary = summary_lib.summarize_network(params, spec, args.batch)
    except (ValueError, FileNotFoundError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    about = {key: spec.origin.get(key) for key in ("method", "data")}
    about = {"model": spec.model["name"], **about}
    if args.json:
        print(json.dumps(about | summary_lib.to_dict(summary), indent=2))
    else:
        print(", ".join(str(x) for x in about.values() if x), end="\n\n")
        print(to_text(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
