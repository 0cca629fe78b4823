"""Deployment: packed artifacts, and what runs them. Needs no training code."""

from quantnet_jax.deploy.export import export_tree
from quantnet_jax.deploy.format.artifact import describe, read, write
from quantnet_jax.deploy.format.packed import Packed, float_tree, pack_tree, unpack_tree
from quantnet_jax.deploy.onnx import to_onnx
from quantnet_jax.deploy.predictor import Predictor, load, make_predictor, save
from quantnet_jax.deploy.spec import NetworkSpec
from quantnet_jax.deploy.stablehlo import to_stablehlo
from quantnet_jax.deploy.summary import summarize
from quantnet_jax.deploy.trees import TreePredictor

__all__ = [
    "NetworkSpec",
    "Packed",
    "Predictor",
    "TreePredictor",
    "describe",
    "export_tree",
    "float_tree",
    "load",
    "make_predictor",
    "pack_tree",
    "read",
    "save",
    "summarize",
    "to_onnx",
    "to_stablehlo",
    "unpack_tree",
    "write",
]
