"""BSC-Net on voxels: the rows of `sparse` on eight kinds of generated surfaces."""

from configs import omniglot_sparse
from sweeps import common, sparse

SIZE = 1000
"""Training shapes, so that a run takes a minute."""


def base():
    c = common.single(omniglot_sparse.get_config, "voxels")()
    c.model.depth = 1
    c.batch_size = 50
    c.data.train_size = SIZE
    c.recalibration_batches = 0
    return c


STUDY = sparse.STUDY._replace(
    title="Eight kinds of generated surfaces as voxels; sparse3d of width 8, "
    f"{SIZE:,} to train on",
    base=base,
    rows=sparse.rows(SIZE // 2),
    validation_size=200,
)
