"""Lists the trained networks of the package: `python -m quantnet_jax.zoo [--json]`."""

import argparse
import json
import sys

from quantnet_jax import zoo


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.zoo", description=str(__doc__).split(":")[0]
    )
    parser.add_argument("--json", action="store_true", help="the whole index")
    if parser.parse_args(argv).json:
        print(json.dumps(zoo.entries(), indent=2))
    else:
        print(zoo.listing())
        print('\nload one with quantnet_jax.load("zoo:NAME")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
