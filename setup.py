"""Packages of the wheel: the rest is in pyproject.toml, which cannot say this.

The shipped configurations stand in configs/ and are installed as quantnet_jax/configs.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["quantnet_jax", "quantnet_jax.*"]),
        "quantnet_jax.configs",
    ],
    package_dir={"quantnet_jax.configs": "configs"},
)
