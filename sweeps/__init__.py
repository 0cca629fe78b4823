"""The studies: one declarative file each; see `quantnet_jax.experiments`."""
