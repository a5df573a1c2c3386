# SPDX-License-Identifier: MIT
"""The CPU kernels compile with clang without a warning, for every instruction set."""

import platform
import shutil
import subprocess

import pytest

from benchmarks.cpu.scaling.program import FLAGS
from tests.native.targets import OPERATORS, ROOT

CLANG = next(filter(shutil.which, ("clang++", "clang++-14")), None)
FLAGS = {
    name: [flag for flag in flags if flag != "-Wno-maybe-uninitialized"]
    for name, flags in FLAGS.items()
}
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
SETS = FLAGS if platform.machine() == "x86_64" else ["baseline"]


@pytest.mark.skipif(CLANG is None, reason="there is no clang")
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_compile_without_a_warning(operator, instruction_set):
    flags = ["-std=gnu++17", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", f"-I{ROOT}"]
    flags += [f"-DJAX_DCN_ISA={instruction_set}", *FLAGS[instruction_set]]
    source = ROOT / "cpu" / operator / "kernels.cc"
    command = [CLANG, *flags, "-fsyntax-only", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
