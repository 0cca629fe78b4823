r"""BSC-Net's way on Omniglot's strokes: binary sparse convolutions, shifted by group.

Command:   python train.py --config=configs/omniglot_sparse.py:search \
               --workdir=runs/omniglot_sparse_search --config.data.folder=FOLDER
           python train.py --config=configs/omniglot_sparse.py:searched \
               --workdir=runs/omniglot_sparse --config.data.folder=FOLDER
           FOLDER holds the two small background sets of Omniglot. The first run
           searches the offsets, the second trains with those that it found.
           The comparison: python -m quantnet_jax.experiments run sparse --folder=FOLDER
Hardware:  one CPU core.
Wall time: minutes each.
Expected:  see docs/sparse.md, study 'sparse'.

All 242 characters, 15 of 20 drawers in training: about 80 of 784 sites are active.
Inputs are binary with learned thresholds (RSign), weights too, with real shortcuts and
RPReLU; stem and head are float. Variant '' has no shift, 'random' random offsets,
'search' and 'searched' the offsets of the search; 'voxels' is the network of three
dimensions, on generated shapes.
"""

from quantnet_jax.config import base, recipes

SHIFTS = {"": "none", "random": "fixed", "search": "search", "searched": "fixed"}


def get_config(variant: str = ""):
    c = base()
    c.epochs = 12.0
    c.batch_size = 64
    c.eval_batch_size = 242
    c.data.name = "omniglot_drawers"
    c.data.pad = 2
    c.data.flip = False
    c.model.name = "sparse2d"
    c.model.width = 16
    c.model.depth = 2
    c.model.capacity = 192
    c.model.act = "rprelu"
    c.activation.name = "rsign"
    c.quantizer.name = "binary_ste"
    c.layers = "inner"
    c.weights.optimizer = "adam"
    c.weights.learning_rate = 5e-3
    c.weights.weight_decay = 0.0
    c.eval_every = 4.0
    c.recalibration_batches = 20
    if variant == "voxels":
        c.data.name, c.data.pad = "shapes", 1
        c.eval_batch_size = 250
        c.model.name, c.model.width, c.model.capacity = "sparse3d", 8, 704
        variant = ""
    if variant == "searched":
        c.init_from = "runs/omniglot_sparse_search"
        c.init_pattern = "params/model/.*/shift"
    if variant == "search":
        search(c)
    c.model.shift = SHIFTS.get(variant, "none")
    plain = "" if variant in SHIFTS else variant
    return recipes.variant_of(c, plain, shrink, (*list(SHIFTS)[1:], "voxels"))


def search(c, beta: float = 1.0):
    """The supernet: all offsets, with beta times the quantization error in the loss."""
    c.terms = ({"name": "quantization_error", "weight": beta},)
    offsets = {"pattern": "model/.*/shift", "optimizer": "adam", "learning_rate": 0.1}
    c.optimizers = (offsets | {"weight_decay": 0.0},)


def shrink(c):
    search(c)
    c.model.shift = "search"
    c.model.capacity, c.model.depth = 0, 1
