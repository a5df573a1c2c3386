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


def test_emulator_refuses_lanes_that_meet_by_different_instructions(planted):
    x = np.arange(64, dtype=np.int32)
    for seed in SEEDS:
        failure = run(planted, "different_instructions", x, seed)
        assert failure == "the lanes of a warp meet by different instructions"
        np.testing.assert_array_equal(run(planted, "different_places", x, seed), x)


def test_emulator_refuses_copies_to_addresses_that_are_not_aligned(planted):
    x = np.full(64, 5, np.int32)
    np.testing.assert_array_equal(run(planted, "copy", x), x)
    assert run(planted, "copy_unaligned", x) == "an asynchronous copy is not aligned"


def test_emulator_has_the_shared_memory_of_the_smallest_gpu(planted):
    x = np.arange(64, dtype=np.int32)
    np.testing.assert_array_equal(run(planted, "shared_99_kb", x), x[::-1])
    assert run(planted, "shared_100_kb", x) == "more shared memory than there is"


@pytest.mark.parametrize(
    ("kernel", "conflicts"),
    [
        ("rows_of_144_bytes", 0),
        ("rows_of_160_bytes", 3 * 8 * 4),  # of eight lanes, two use the same banks
        ("rows_of_128_bytes", 3 * 8 * 7),  # all eight
        ("words", 0),
        ("every_second_word", 2 * 2 * 16),  # of 32 lanes, 16 find their bank taken
        ("every_third_pair", 0),
        ("every_fourth_pair", 2 * 4 * 12),  # of 16 lanes, all but the first four
        ("samples", 2 * 8 * 4),  # of the halves of eight samples, two use the same banks
        ("samples_of_48_bytes", 0),
    ],
)
def test_emulator_counts_bank_conflicts_of_stores_loads_matrices_and_samples(
    planted, kernel, conflicts
):
    x = np.arange(64, dtype=np.int32)
    before = planted.cuda_host_bank_conflicts()
    np.testing.assert_array_equal(run(planted, kernel, x), x)
    assert planted.cuda_host_bank_conflicts() - before == conflicts


def test_code_is_the_same_for_all_architectures_but_for_the_registers_of_a_second_block():
    """The emulator runs the code of no architecture: what differs must be told by other means."""
    sources = (build.ROOT / "cuda").rglob("*")
    found = [
        f.name
        for f in sources
        if f.suffix != ".md" and f.is_file() and "__CUDA_ARCH__" in f.read_text()
    ]
    assert found == ["launch.cuh"]


def test_kernels_match_the_reference_under_sanitizers():
    command = [sys.executable, build.HERE.parent / "cuda_on_host.py", "--seeds", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
