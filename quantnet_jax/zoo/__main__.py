"""Lists the trained networks of the package, or prints the model card of one.

python -m quantnet_jax.zoo [NAME] [--json]
"""

import json
import sys

from quantnet_jax import zoo
from quantnet_jax.core import command


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("zoo", __doc__)
    parser.add_argument("--json", action="store_true", help="print the whole index")

    def work(args):
        if args.json:
            print(json.dumps(zoo.entries(), indent=2))
        else:
            print(zoo.listing())
            print('\nload one with quantnet_jax.load("zoo:NAME")')

    return command.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
