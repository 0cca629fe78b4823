"""Experiments: every other file but common.py has a `get_config(variant)`."""
