"""Lists the trained networks of the package, or prints the model card of one.

python -m quantnet_jax.zoo [NAME] [--json]
"""

import json
import sys

from quantnet_jax import zoo
from quantnet_jax.common import command
from quantnet_jax.zoo import card


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("zoo", __doc__)
    parser.add_argument("name", nargs="?", help="of a network: print its model card")
    parser.add_argument("--json", action="store_true", help="as JSON, whole")

    def work(args):
        name = args.name and args.name.removeprefix(zoo.PREFIX)
        entries = zoo.entries()
        if name:
            zoo.path(name)  # refuses an unknown one
        if args.json:
            print(json.dumps(entries[name] if name else entries, indent=2))
        elif name:
            print(card.card(name))
        else:
            print(zoo.listing())
            print('\nload one with quantnet_jax.load("zoo:NAME")')

    return command.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
