# SPDX-License-Identifier: MIT
"""Division by multiplication on CUDA (`cuda/runtime/divisor.h`) is division."""

import ctypes
import os
import pathlib
import shutil

import numpy as np
import pytest

from tests.native.cuda_host import build

pytestmark = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler"
)
MOST = 2**31 - 1

PROGRAM = """
#include <cuda_runtime.h>
#include "cuda/runtime/divisor.h"
extern "C" __attribute__((visibility("default"))) void divide(
    int64_t divisor, int64_t count, const int32_t* n, int32_t* quotients, int32_t* remainders) {
  const jax_dcn::Divisor by(divisor);
  for (int64_t i = 0; i < count; ++i) {
    quotients[i] = by.Quotient(n[i]);
    remainders[i] = by.Remainder(n[i], quotients[i]);
  }
}
"""


@pytest.fixture(scope="module")
def divide(tmp_path_factory: pytest.TempPathFactory):
    folder: pathlib.Path = tmp_path_factory.mktemp("divisor")
    (folder / "divide.cu").write_text(PROGRAM)
    build.build(folder / "divide.so", [folder / "divide.cu"])
    function = ctypes.CDLL(str(folder / "divide.so")).divide

    def quotients_and_remainders(numbers: np.ndarray, divisor: int):
        results = np.full_like(numbers, -1), np.full_like(numbers, -1)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (numbers, *results)]
        function(ctypes.c_int64(divisor), ctypes.c_int64(numbers.size), *pointers)
        return results

    return quotients_and_remainders


def test_quotients_and_remainders_are_those_of_division(divide):
    random = np.random.default_rng(0)
    powers = [2**i + d for i in range(31) for d in (-1, 0, 1)]
    for divisor in {d for d in powers if 1 <= d <= MOST} | {*range(1, 300), MOST - 1}:
        multiples = np.arange(1, 60) * divisor
        near = np.concatenate([multiples - 1, multiples, multiples + 1])
        most = MOST - np.arange(60)
        n = np.concatenate([np.arange(100), near, most, random.integers(0, MOST, 300)])
        n = n[n <= MOST].astype(np.int32)
        quotients, remainders = divide(n, divisor)
        np.testing.assert_array_equal(quotients, n // divisor)
        np.testing.assert_array_equal(remainders, n % divisor)
