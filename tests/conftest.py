# SPDX-License-Identifier: MIT
"""The suite runs in 64 bits, under JAX's strict promotion rules, with warnings as errors."""

import ctypes
import gc
import os
import pathlib
import resource
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

# Python's search for unreachable objects took a tenth of the time of tests that trace. `Memory` frees
# compiled programs.
gc.set_threshold(20_000, 20, 50)

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


class Memory:
    """The memory of this process, of which compiled programs take megabytes each."""

    most = 1200  # MiB after which programs are freed before the end of a file: a worker has 2 GB
    growth = 200  # MiB at least from one release to the next, for some memory stays in use
    released = 0  # MiB after the last release

    @staticmethod
    def resident() -> int:
        """MiB; 0 where no Linux tells."""
        counts = pathlib.Path("/proc/self/statm")
        pages = int(counts.read_text().split()[1]) if counts.exists() else 0
        return pages * resource.getpagesize() >> 20

    @classmethod
    def release(cls) -> None:
        jax.clear_caches()
        gc.collect()
        # The C library keeps what is freed: after the ImageNet example 540 MiB of 1350.
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        cls.released = cls.resident()

    @classmethod
    def is_large(cls) -> bool:
        return cls.resident() > max(cls.most, cls.released + cls.growth)


@pytest.fixture(scope="module", autouse=True)
def release_programs() -> Iterator[None]:
    """Frees the compiled programs of a file."""
    yield
    Memory.release()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Frees the programs of a file that has many before its end, too."""
    if Memory.is_large():
        Memory.release()


@pytest.fixture(params=["native", "xla"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
