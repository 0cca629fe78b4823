"""What all studies share: grid of runs, queue with a time budget, results, tables.

A study is a file of `sweeps/`, which `python -m quantnet_jax.experiments` runs.
"""
