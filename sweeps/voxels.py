"""BSC-Net on voxels: the rows of `sparse` on eight kinds of generated surfaces."""

from configs import omniglot_sparse
from sweeps import common, sparse


def base():
    c = common.single(omniglot_sparse.get_config, "voxels")()
    c.model.depth = 1
    c.batch_size = 50
    c.recalibration_batches = 0
    return c


STUDY = sparse.STUDY._replace(
    title="Eight kinds of generated surfaces as voxels; sparse3d of width 8",
    base=base,
    rows=sparse.rows(1000),
    validation_size=200,
)
