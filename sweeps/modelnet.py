"""The rows of `voxels` on two classes of ModelNet40: real shapes, no benchmark."""

from sweeps import sparse, voxels


def base():
    c = voxels.base()
    c.data.name, c.data.train_size = "modelnet40", 0
    c.eval_batch_size = 50
    return c


STUDY = voxels.STUDY._replace(
    title="Airplanes and bathtubs of ModelNet40 as voxels; sparse3d of width 8",
    base=base,
    rows=sparse.rows(300),
    validation_size=100,
)
