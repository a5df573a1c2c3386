# SPDX-License-Identifier: MIT
"""The CUDA kernels compile for every GPU architecture, and spill no registers."""

import re
import subprocess
import sys

import pytest

from tests.native import compile_cuda


@pytest.mark.skipif(not compile_cuda.nvcc(), reason="there is no nvcc")
def test_kernels_compile_for_every_architecture_without_spills():
    command = [sys.executable, compile_cuda.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_resources_are_those_of_the_kernels_there_are():
    sources = "".join(path.read_text() for path in (compile_cuda.ROOT / "cuda").rglob("*.cu"))
    kernels = set(re.findall(r"__global__[^;{]*?\b(\w+Kernel)\(", sources))
    assert kernels == {kernel.split("<")[0] for kernel in compile_cuda.recorded()}


REPORT = """
ptxas info    : Compiling entry function '_Z6KernelIfEvPf' for 'sm_80'
ptxas info    : Function properties for _Z6KernelIfEvPf
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 380 bytes cmem[0]
"""


def test_spills_are_read_off_the_report():
    text = REPORT.format(stack=0, stores=0) + REPORT.replace("sm_80", "sm_90").format(
        stack=8, stores=4
    )
    found = compile_cuda.resources(text)
    assert found["Kernel<float>", "sm_80"] == dict(registers=40, shared=128, stack=0, spills=0)
    assert found["Kernel<float>", "sm_90"]["spills"] == 4
