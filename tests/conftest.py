"""Strict settings for every test: 4 forced CPU devices, no silent promotion.

Most of the time of the tests is XLA's. Each program is compiled once for all processes
of a session and, but in modules marked `optimized`, with little optimization.
"""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = ["--xla_force_host_platform_device_count=4"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # unknown ones are fatal
    # Without these two a program takes half as long again to compile.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
    FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
    # On a busy machine four devices of one core meet late: wait, do not abort.
    FLAGS += ["--xla_cpu_collective_call_terminate_timeout_seconds=600"]
# As many threads as devices, no more, are a deadlock once one of them waits for a copy.
os.environ.setdefault("NPROC", "16")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # By the first process: the workers of pytest-xdist and subprocesses inherit it.
    CACHE = tempfile.mkdtemp(prefix="quantnet_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(100_000, 20, 20)  # tracing makes many objects, and few cycles

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A plugin may have imported jax before the variable was set.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_disable_most_optimizations", True)

ROOT = pathlib.Path(__file__).parent.parent


FIRST = ("distributed", "buckets", "deploy_fuzz", "examples", "parallel", "chaos")
"""Files of few long tests: begun last, one of them would run alone at the end."""


def pytest_configure(config):
    config.addinivalue_line("markers", "optimized: see conftest.optimization")


def pytest_collection_modifyitems(items):
    def place(item):
        last = item.path.stem.removeprefix("test_") not in FIRST
        return last, item.get_closest_marker("optimized") is None

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def optimization(request):
    """Compiles the programs of a module marked `optimized` as a user's are.

    For tests that compare the bits of two programs: what may part them, a fused
    multiply-add for one, is the work of the optimization.
    """
    setting = "jax_disable_most_optimizations"
    wanted = str(int(request.node.get_closest_marker("optimized") is None))
    if os.environ[setting.upper()] != wanted:
        os.environ[setting.upper()] = wanted  # for subprocesses
        jax.clear_caches()
        jax.config.update(setting, wanted == "1")


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


@pytest.fixture(scope="session")
def real(shared_data, tmp_path_factory):
    """(data folder of TFDS, {split: {file name: bytes}}) of `jpegs.make_real`."""
    pytest.importorskip("tensorflow_datasets")
    import jpegs

    folder = tmp_path_factory.mktemp("real")
    archive = shared_data / "imagenet-sample" / "imagenet_sample_51.zip"
    yield jpegs.make_real(archive, folder)
    sys.path.remove(str(folder))


@pytest.fixture
def compile_once(monkeypatch):
    """Programs of tests that train are built once, see `program.build_once`."""
    from program import build_once

    monkeypatch.setattr("quantnet_jax.training.experiment.build", build_once)
    return build_once


@pytest.fixture
def whole(tmp_path_factory, compile_once):
    """(workdir, result) of a run from start to end; a copy of its own for each test."""
    from program import whole_run

    return whole_run(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def bucket():
    """Path of an empty bucket of an emulator of Google Cloud Storage."""
    for name in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(name)
    from quantnet_jax.common.files import as_path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "emulator.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")  # nobody to ask for an account
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        for _ in range(100):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield as_path("gs://mine")
    process.kill()
    process.wait()
