"""An artifact made by hand, without training: its spec and its parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from quantnet_jax import deploy, models
from quantnet_jax.core.qtensor import QTensor

CLASSES = ["coat", "bag", "shoe"]
SPEC = deploy.NetworkSpec(
    model={"name": "small", "width": 4, "stem_strides": 2},
    outputs=3,
    shape=(8, 8, 1),
    mean=(0.5,),
    std=(0.25,),
    activation={"name": "pact", "bits": 2, "start": 6.0},
    task="classification",
    info={"classes": CLASSES},
    origin={"method": "made up"},
)


def make_params():
    """Parameters of `SPEC`'s network; one kernel of 1 bit, one of 3 levels."""
    model = models.create("small", outputs=3, width=4, folded=True)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(rng.normal(size=x.shape), np.float32), shapes
    )
    params["conv1"]["kernel"] = QTensor(
        jnp.asarray(rng.integers(0, 2, (3, 3, 4, 4)), jnp.uint8),
        jnp.asarray([-1.0, 1.0]),
        jnp.asarray(rng.uniform(0.1, 1.0, (1, 1, 1, 4)), jnp.float32),
    )
    params["conv2"]["kernel"] = QTensor(
        jnp.asarray(rng.integers(0, 3, (3, 3, 4, 4)), jnp.uint8),
        jnp.asarray(np.sort(rng.normal(size=(4, 3))), jnp.float32),
        jnp.asarray(0.5, jnp.float32),
    )
    for name in ("conv1_input", "conv2_input"):
        params[name] = {"qparams": np.asarray(2.0, np.float32)}
    return params


def write_export(folder):
    """What `export_state` leaves in a folder."""
    path = folder / "model.safetensors"
    deploy.save(path, make_params(), SPEC)
    program = deploy.stablehlo.of_predictor(deploy.load(path))
    (folder / "model.stablehlo").write_bytes(program)
