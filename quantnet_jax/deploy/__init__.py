"""Deployment: packed artifacts, and what runs them. Needs no training code."""

from quantnet_jax.deploy.artifact import describe, read, write
from quantnet_jax.deploy.packed import Packed, float_tree, pack_tree, unpack_tree
from quantnet_jax.deploy.predictor import Predictor, load

__all__ = [
    "Packed",
    "Predictor",
    "describe",
    "float_tree",
    "load",
    "pack_tree",
    "read",
    "unpack_tree",
    "write",
]
