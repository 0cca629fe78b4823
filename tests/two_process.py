"""One process of several, for test_distributed.py: trains, evaluates, writes it down.

python two_process.py FOLDER HOST:PORT PROCESSES PROCESS
"""

import pathlib
import pickle
import sys

import jax

STEPS = 3


def main(folder: str, coordinator: str, processes: str, process: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    from tiny import outcome, tiny_config

    from quantnet_jax.training import parallel

    parallel.initialize(False, coordinator, int(processes), int(process))
    outcomes = {
        runner: outcome(tiny_config(runner=runner), STEPS)
        for runner in parallel.RUNNERS
    }
    path = pathlib.Path(folder) / f"process{process}.pickle"
    path.write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
