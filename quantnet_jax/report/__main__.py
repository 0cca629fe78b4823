"""Command line `python -m quantnet_jax.report`: run folders in, one HTML page out."""

import argparse
import sys
from collections.abc import Sequence

from quantnet_jax.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m quantnet_jax.report",
        description="Write one self-contained HTML page about one or several runs.",
    )
    parser.add_argument(
        "--workdir", nargs="+", required=True, metavar="DIR", help="folders of runs"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the first DIR)"
    )
    flags = parser.parse_args(argv)
    try:
        print(write_report(flags.workdir, flags.out))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
