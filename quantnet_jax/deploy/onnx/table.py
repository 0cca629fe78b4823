"""Every primitive that has a translation to ONNX."""

from quantnet_jax.deploy.onnx import elementwise, loops, products, shapes

TABLE = {
    **elementwise.rows(),
    **shapes.rows(),
    **products.rows(),
    **loops.rows(),
}
"""{primitive: row}; adding one is one row."""
