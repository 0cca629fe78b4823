"""Checks members against the laws, on the device at hand.

python -m quantnet_jax.testing                      # every member of the list
python -m quantnet_jax.testing quantnet my:factory  # some, or a factory of yours
"""

import argparse
import functools
import sys

from quantnet_jax import quantizers
from quantnet_jax.common import command
from quantnet_jax.testing import ORDER, check_quantizer

LAWS = set(ORDER) - {5, 11, 12}
"""Not how far a schedule anneals (5), and not what costs most (11, 12)."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 1 if a law is broken, 2 for wrong arguments."""
    parser = command.Parser("testing", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="members; all of them")
    return command.run(parser, functools.partial(_work, parser), argv)


def _work(parser: command.Parser, args: argparse.Namespace) -> int:
    broken = 0
    for name in args.names or list(quantizers.MEMBERS):
        try:
            forward = quantizers.find(name)[0].forward
            q = quantizers.create(name, total_steps=10, **quantizers.options(name))
        except ValueError as e:
            parser.error(str(e))
        try:
            check_quantizer(q, forward=forward, laws=LAWS)
        except AssertionError as e:
            broken += 1
            print(f"{name}: {str(e).splitlines()[0]}", flush=True)
        else:
            print(f"{name}: obeys the laws", flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
