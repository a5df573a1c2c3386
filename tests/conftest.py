# SPDX-License-Identifier: MIT
"""The suite runs in 64 bits, under JAX's strict promotion rules, with warnings as errors."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version

import jax
import pytest

import jax_dcn

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# XLA then compiles twice as fast, here and in the processes that tests start. The kernels, which are
# compiled ahead, are as users have them.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# And twice as fast again without the emitters that newer versions cannot do without.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

# A process has one number of devices: two for the examples' tests, and more in another process for
# the tests in devices/eight, which devices/test_sharding.py runs.
jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_DCN_TEST_DEVICES", "2")))
collect_ignore = [] if "JAX_DCN_TEST_DEVICES" in os.environ else ["devices/eight"]


def pytest_report_header() -> list[str]:
    devices = f"jax {jax.__version__}, devices: {jax.devices()}"
    # What a run without one cannot have proven is said in cuda/README.md.
    gpu = "" if jax.default_backend() == "gpu" else "no GPU: the CUDA kernels ran on no device"
    return [
        devices,
        *([gpu] if gpu else []),
        *(f"{name}: {state}" for name, state in jax_dcn.available_implementations().items()),
    ]


# Files that take a minute or more: begun first, so that no worker ends alone with one.
LONGEST = (
    "test_sanitizers.py",
    "test_cuda_on_host.py",
    "test_wheel.py",
    "test_gpu_benchmark.py",
    "test_cuda_compiles.py",
    "test_detection_cycle.py",
    "test_examples_imagenet.py",
    "test_transforms.py",
    "test_sharding.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def release_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: each takes megabytes until the process ends."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(params=["native", "xla"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
