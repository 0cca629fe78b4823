"""For test_fsdp.py: eight forced devices train whole and sharded; prints JSON."""

import json
import os

os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
from tiny import tiny_config, train

from quantnet_jax.training import experiment

STEPS = 4


def measure(fsdp):
    """(state on the host, codes, [bytes of the state on each device])."""
    config = tiny_config(runner="jit", fsdp=fsdp, eval_batch_size=16)
    config.model.width = 16
    exp = experiment.build(config)
    state, _ = train(exp, STEPS)
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return jax.device_get(state), exp.codes(state), list(held.values())


if __name__ == "__main__":
    whole, codes, bytes_whole = measure(1)
    sharded, codes_sharded, bytes_sharded = measure(4)
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(sharded), strict=True)
    error = [
        float(np.max(np.abs(a - b) / (np.max(np.abs(a)) + 1e-3)))
        for a, b in pairs
        if a.size
    ]
    flipped = [int(np.sum(codes[path] != codes_sharded[path])) for path in codes]
    print(
        json.dumps(
            {
                "error": max(error),
                "flipped": sum(flipped),
                "whole": bytes_whole,
                "sharded": bytes_sharded,
            }
        )
    )
