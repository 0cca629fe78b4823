"""Trains an experiment: `python train.py [--config=NAME] [--workdir=DIR] [overrides]`.

The program is `quantnet_jax/train.py`, which `quantnet-train` of an installed package
runs, too.
"""

import sys

from quantnet_jax.train import main

if __name__ == "__main__":
    sys.exit(main())
