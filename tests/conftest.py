"""Strict defaults for every test: 8 virtual CPU devices, no silent dtype or rank promotion."""

import functools
import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What compiles more quickly costs more to keep than to make again.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

import jax
import pytest
from jax._src.interpreters import partial_eval
from xdist.scheduler import LoadScopeScheduling

from tests import quick_programs, quick_random, typechecker
from tests.compiled import drop_all
from tests.costs import (  # noqa: F401  pytest calls these
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.recipes import two_blocks  # noqa: F401

# Shapes in signatures are checked while testing only; users never pay for it.
typechecker.install()

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

quick_random.install()
# Flax asks tracers for a `sharding` that they do not have, and jax prints the whole program for
# the error that nobody sees: three quarters of the time to trace a large model.
if hasattr(partial_eval.DynamicJaxprTracer, "_origin_msg"):
    partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""


def pytest_configure(config):
    """Give all workers, and the processes that tests start, one cache of compiled programs.

    A run that finds the variable set keeps its programs there, for the next run.
    """
    quick_programs.install()
    if not jax.config.jax_compilation_cache_dir:
        folder = tempfile.mkdtemp(prefix="vadapt-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        jax.config.update("jax_compilation_cache_dir", folder)
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


class ByFile(LoadScopeScheduling):
    """Keeps a file on one worker, for its fixtures and programs; or what has one parameter."""

    SPLIT = ("tests/test_parity.py", "tests/test_configs.py", "tests/test_recipes_whole.py")

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        return file + test[test.find("[") :] if file in self.SPLIT and "[" in test else file


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_finish():
    """Take what importing made out of every later collection of garbage, and collect seldom.

    Tracing makes millions of small objects; looking through them was 3 % of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def drop_programs():
    """Let go of programs after a module: kept until the end they would be gigabytes."""
    yield
    drop_all()


@pytest.fixture
def rng():
    """A NumPy generator with a fixed seed."""
    import numpy as np

    return np.random.default_rng(0)
