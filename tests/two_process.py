"""One process of several, for test_distributed.py: trains, evaluates, writes it down.

python two_process.py FOLDER HOST:PORT PROCESSES PROCESS
"""

import pathlib
import pickle
import sys

import jax
import numpy as np

STEPS = 3


def sharded(folder):
    """Trains with a state that all devices of both processes divide among them.

    It is saved in `folder` and restored from there onto the same devices.
    """
    from tiny import tiny_config, train

    from quantnet_jax.checkpoint.manager import Checkpoints
    from quantnet_jax.training import experiment

    exp = experiment.build(tiny_config(runner="jit", fsdp=4))
    state, metrics = train(exp, STEPS)
    assert not any(x.is_fully_addressable for x in jax.tree.leaves(state))
    with Checkpoints(folder, processes=exp.runner.process_count) as checkpoints:
        checkpoints.save(STEPS, state)
        restored = exp.runner.place(checkpoints.restore(state).state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(np.asarray(x.data), np.asarray(y.data))
    return {"metrics": metrics, "codes": exp.codes(state)}


def main(folder: str, coordinator: str, processes: str, process: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    from tiny import outcome, tiny_config

    from quantnet_jax.distributed import hosts, runners

    hosts.initialize(False, coordinator, int(processes), int(process))
    outcomes = {
        runner: outcome(tiny_config(runner=runner), STEPS) for runner in runners.RUNNERS
    }
    outcomes["fsdp"] = sharded(pathlib.Path(folder) / "fsdp")
    path = pathlib.Path(folder) / f"process{process}.pickle"
    path.write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
