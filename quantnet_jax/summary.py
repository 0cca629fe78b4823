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
import jax.numpy as jnp

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
"""Shapes of the images of sets that need not be read for a summary."""


def read_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a file, read as `train.py` reads it.

    Args:
      path: 'FILE.py' or 'FILE.py:VARIANT'.
      overrides: words such as '--config.model.width=8'.

    Raises:
      FileNotFoundError, ValueError: in one line, what is wrong.
    """
    from absl import flags
    from ml_collections import config_flags

    from quantnet_jax import config as config_lib

    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # so that a file finds `configs.common`
    file = path.split(".py:")[0].removesuffix(".py") + ".py"
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"{file} not found")
    values, words = flags.FlagValues(), ["summary", f"--config={path}", *overrides]
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=words
    )
    try:
        values(words)
        config = holder.value
        config_lib.check(config)
    except (flags.Error, OSError, *_OF_FILES) as e:
        raise ValueError(f"{path}: {_last_line(e)}") from None
    return config


_OF_FILES = (TypeError, ValueError, KeyError, AttributeError, SyntaxError, ImportError)
"""What a configuration's file, or an override of it, may raise."""


def from_config(config: Any) -> tuple[PyTree, dict[str, Any]]:
    """(packed parameters as shapes, spec) of the network that a configuration ships.

    Raises:
      ValueError, FileNotFoundError: the configuration is wrong, or the data set that
        says how many classes there are is missing.
    """
    from quantnet_jax.core import tree
    from quantnet_jax.training import parts

    shape, classes = _data(config)
    model = parts.make_model(config, {"outputs": classes}, None).clone(folded=True)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key, image)["params"]
    quantizer = tree.quantize_tree(parts.make_rules(config, 1), params)
    hard = lambda p: deploy.pack_tree(quantizer.hard(quantizer.init(key, p), p))
    activation = None
    if name := config.activation.name:
        activation = {"name": name, **config.activation[name].to_dict()}
    spec = {
        "model": parts.model_options(config) | {"dtype": config.dtype},
        "activation": activation,
        "input": {"shape": shape},
        "classes": [str(number) for number in range(classes)],
        "method": config.quantizer.name,
        "data": config.data.name,
    }
    return jax.eval_shape(hard, params), spec


def _data(config: Any) -> tuple[tuple[int, ...], int]:
    """Shape of an image and number of classes; reads data only where it must."""
    from quantnet_jax import data
    from quantnet_jax.distributed import runners
    from quantnet_jax.training import feed

    c = config.data
    if c.name in IMAGES:
        classes = len(data.CLASSES[c.name])
        return IMAGES[c.name], min(c.classes or classes, classes)
    if c.name == "imagenet2012":
        size = c.image_size or 224
        return (size, size, 3), 1000
    found = feed.make_feed(config, runners.make_runner("jit"))
    return found.shape, len(found.info["classes"])


def _last_line(error: Exception) -> str:
    reason: Any = error
    while isinstance(reason, Exception) and reason.args:
        reason = reason.args[0]
    return [line.strip() for line in str(reason).splitlines() if line.strip()][-1]


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
    about = {key: spec.get(key) for key in ("method", "data")}
    about = {"model": spec["model"]["name"], **about}
    if args.json:
        print(json.dumps(about | summary_lib.to_dict(summary), indent=2))
    else:
        print(", ".join(str(x) for x in about.values() if x), end="\n\n")
        print(to_text(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
