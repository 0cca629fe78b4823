"""Strict settings for every test: 4 forced CPU devices, no silent promotion."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def key():
    """A fixed PRNG key."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real data sets beside the repository, where there is one."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(data folder of TFDS, {split: {file name: bytes}}) of `jpegs.make_set`."""
    pytest.importorskip("tensorflow_datasets")
    import jpegs

    folder = tmp_path_factory.mktemp("builder")
    yield jpegs.make_set(folder)
    sys.path.remove(str(folder))
