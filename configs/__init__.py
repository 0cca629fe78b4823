"""Experiments: every other file has a `get_config(variant)`."""
