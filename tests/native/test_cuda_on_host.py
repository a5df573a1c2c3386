# SPDX-License-Identifier: MIT
"""The CUDA kernels, compiled for the host and run there by an emulator of grids (`native/cuda_host`)."""

import ctypes
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.native.cuda_host import build

pytestmark = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler"
)
SEEDS = range(4)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("cuda_host") / "planted.so"
    build.build(path, [build.HERE / "planted.cu"])
    library = ctypes.CDLL(str(path))
    library.failure.restype = ctypes.c_char_p
    return library


def run(library: ctypes.CDLL, kernel: str, x: np.ndarray, seed: int = 0) -> np.ndarray | str:
    """The output of a planted kernel on one block, or why it failed."""
    library.cuda_host_set_seed(ctypes.c_uint64(seed))
    y = np.full_like(x, -1)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
    error = getattr(library, kernel)(x.size, *pointers)
    return library.failure().decode() if error else y


@pytest.mark.parametrize(
    ("kernel", "law"),
    [
        ("reverse", lambda x: x[::-1]),
        ("warp_sum", lambda x: np.repeat(x.reshape(-1, 32).sum(1), 32)),
    ],
)
def test_emulator_tells_a_missing_barrier_by_its_result(planted, kernel, law):
    x = np.arange(96, dtype=np.int32) * 3 + 1
    for seed in SEEDS:
        np.testing.assert_array_equal(run(planted, kernel, x, seed), law(x))
        assert (run(planted, f"{kernel}_without_barrier", x, seed) != law(x)).any()


@pytest.mark.parametrize(
    ("kernel", "failure"),
    [("divergent_barriers", "different barriers"), ("absent_lane", "wait for each other in vain")],
)
def test_emulator_refuses_threads_that_never_meet(planted, kernel, failure):
    assert failure in run(planted, kernel, np.zeros(64, np.int32))


def test_kernels_match_the_reference_under_sanitizers():
    command = [sys.executable, build.HERE.parent / "cuda_on_host.py", "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
