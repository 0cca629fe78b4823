"""Writes one self-contained HTML page about one or several runs.

python -m quantnet_jax.report DIR [DIR ...] [--out=FILE]
"""

import sys
from collections.abc import Sequence

from quantnet_jax.common import command
from quantnet_jax.common.files import check_place
from quantnet_jax.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command.Parser("report", __doc__)
    parser.add_subject("workdir", "DIR", "folders of runs", nargs="*")
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the first DIR)"
    )

    def work(args):
        check_place(args.out or args.workdir[0])
        print(write_report(args.workdir, args.out))

    return command.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
