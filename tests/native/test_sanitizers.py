# SPDX-License-Identifier: MIT
"""The kernels run clean under the compiler's sanitizers."""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import pytest

from tests.native.targets import OPERATORS, ROOT

INFORMATION = pathlib.Path("/proc/cpuinfo")
NATIVE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler"
)


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, NATIVE / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("instruction_set", ["baseline", "avx512_bf16"])
def test_random_problems_run_clean(instruction_set):
    output = run("sanitize.py", "--problems", "100", "--instruction-set", instruction_set)
    assert output.count("100 problems") == 2 * len(OPERATORS)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86-64")
@pytest.mark.parametrize("operator", OPERATORS)
def test_headers_include_what_each_instruction_set_needs(operator):
    flags = ["-std=gnu++17", "-Wno-psabi", f"-I{ROOT}", "-DJAX_DCN_ISA=avx2", "-mavx2"]
    source = ROOT / "cpu" / operator / "kernels.cc"
    command = [os.environ.get("CXX", "c++"), *flags, "-fsyntax-only", source]
    subprocess.run(command, check=True)


def test_handlers_refuse_or_compute_whatever_they_are_called_with():
    output = run("fuzz.py", "--calls", "20000", "--xla-calls", "150")
    for host in ("calls:", "calls by XLA:"):
        counts = re.findall(rf"(\w+): \d+ {host} (\d+) computed, (\d+) refused", output)
        assert len(counts) == 3 * len(OPERATORS)
        assert all(int(number) for _, *numbers in counts for number in numbers), counts


@pytest.mark.parametrize("model, feature", [("pairs", "avx512_bf16"), ("tiles", "amx_bf16")])
def test_model_gives_the_processors_bits(model, feature, tmp_path):
    if not (INFORMATION.exists() and feature in INFORMATION.read_text()):
        pytest.skip("the processor does not multiply bfloat16 in this way")
    program = tmp_path / model
    flags = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx512bf16", "-mfma")
    if model == "tiles":
        flags += ("-mamx-tile", "-mamx-bf16", "-DJAX_DCN_X86", "cpu/runtime/instruction_set.cc")
    source = ("-std=gnu++17", "-O1", "-Wno-psabi", f"-I{ROOT}", "-DJAX_DCN_ISA=avx512_bf16")
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *source, *flags, NATIVE / f"{model}.cc", "-o", program]
    subprocess.run(command, check=True, cwd=ROOT)
    assert "processor's bits" in subprocess.check_output([program], text=True)
