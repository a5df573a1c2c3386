# SPDX-License-Identifier: MIT
"""The CUDA kernels compile for every GPU architecture, and spill no registers."""

import re
import subprocess
import sys

import pytest

from tests.native import compile_cuda, sass


@pytest.mark.skipif(not compile_cuda.nvcc(), reason="there is no nvcc")
def test_kernels_compile_for_every_architecture_without_spills():
    command = [sys.executable, compile_cuda.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_resources_are_those_of_the_kernels_there_are():
    sources = "".join(path.read_text() for path in (compile_cuda.ROOT / "cuda").rglob("*.cu*"))
    kernels = set(re.findall(r"__global__[^;{]*?\b(\w+Kernel)\(", sources))
    assert kernels == {kernel.split("<")[0] for kernel in compile_cuda.recorded()}


REPORT = """
ptxas info    : Compiling entry function '_Z6KernelIfEvPf' for 'sm_80'
ptxas info    : Function properties for _Z6KernelIfEvPf
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 380 bytes cmem[0]
"""
KERNEL = "_Z6KernelIfEvPf"


def test_spills_are_read_off_the_report():
    text = REPORT.format(stack=0, stores=0) + REPORT.replace("sm_80", "sm_90").format(
        stack=8, stores=4
    )
    found = compile_cuda.resources(text)
    assert found[KERNEL, "80"] == compile_cuda.Resources(40, smem=128, stack=0, spills=0)
    assert found[KERNEL, "90"].spills == 4


@pytest.mark.parametrize(
    ("registers", "threads", "least", "architecture", "blocks"),
    [
        (168, 256, 1, "90", 1),
        (168, 256, 0, "90", 1),
        (128, 256, 2, "90", 2),
        (128, 256, 1, "89", 1),  # compiled for one, because of shared memory
        (54, 256, 4, "90", 4),
        (18, 256, 0, "90", 8),
        (18, 256, 0, "89", 6),  # fewer warps
    ],
)
def test_blocks_of_a_multiprocessor(registers, threads, least, architecture, blocks):
    assert compile_cuda.blocks(registers, threads, least, architecture) == blocks


def test_launch_bounds_are_read_off_the_ptx():
    ptx = """.target sm_90
    .visible .entry Bounded(.param .u64 a) .maxntid 256, 1, 1 .minnctapersm 2 { ret; }
    .visible .entry Free(.param .u64 a) { ret; }"""
    bounds = {("Bounded", "90"): (256, 2), ("Free", "90"): (0, 0)}
    assert compile_cuda.launch_bounds(ptx) == bounds


# A loop of two ways, the second one longer, around a loop that is no part of a round.
LISTING = """
code for sm_90
  Function : Kernel
    /*0000*/  MOV R1, c[0x0][0x28] ;
    /*0010*/  ISETP.GE.AND P0, PT, R2, R3, PT ;
    /*0020*/  @!P0 BRA 0x60 ;
    /*0030*/  LDG.E.128 R4, desc[UR4][R2.64] ;
    /*0040*/  IMAD R8, R8, R9, R10 ;
    /*0050*/  BRA 0xa0 ;
    /*0060*/  LDG.E.128 R4, desc[UR4][R2.64] ;
    /*0070*/  FFMA R4, R5, R6, R7 ;
    /*0080*/  FFMA R4, R5, R6, R7 ;
    /*0090*/  HMMA.16816.F32.BF16 R8, R12, R14, R8 ;
    /*00a0*/  LDS R4, [R5] ;
    /*00b0*/  @P1 BRA 0xa0 ;
    /*00c0*/  @P2 BRA 0x10 ;
    /*00d0*/  EXIT ;
    /*00e0*/  BRA 0xe0 ;
"""


def test_a_round_of_the_main_loop_is_its_longest_way():
    (code,) = sass.functions(LISTING).values()
    assert len(code) == 15
    # The inner loop at 0xa0 cannot be passed by, so that nothing leads to the end of a round.
    assert not sass.main_loop(code)
    (code,) = sass.functions(LISTING.replace("@P1 BRA 0xa0", "@P1 BRA 0xc0")).values()
    loop = sass.main_loop(code)
    assert loop == dict(tensor=1, float=2, **{"global": 1}, shared=1, other=4)


def test_a_kernel_that_has_grown_is_told():
    key = ("Kernel<float>", "90")
    used = compile_cuda.Resources(40, 0, 0, 0, blocks=2, loop=dict(float=70, integer=30))
    same = dict(instructions=100, blocks=2)
    assert compile_cuda.grown({key: used}, {key: same}) == []
    assert compile_cuda.grown({key: used}, {key: same | dict(instructions=101)}) == []
    (longer,) = compile_cuda.grown({key: used}, {key: same | dict(instructions=99)})
    assert longer == "Kernel<float> on sm_90: 99 -> 100 instructions in the main loop"
    (fewer,) = compile_cuda.grown({key: used}, {key: same | dict(blocks=3)})
    assert fewer.endswith("3 -> 2 blocks on a multiprocessor")


def test_a_table_is_read_as_it_was_written(monkeypatch):
    monkeypatch.setattr(compile_cuda, "version", lambda: "13.0.88")
    loop = {kind: number for number, kind in enumerate(compile_cuda.KINDS, start=1)}
    used = compile_cuda.Resources(40, smem=128, stack=0, spills=0, blocks=2, loop=loop)
    _, numbers = compile_cuda.read(compile_cuda.table({("Kernel<float>", "90"): used}))
    expected = dict(registers=40, smem=128, blocks=2, instructions=sum(loop.values()), **loop)
    assert numbers == {("Kernel<float>", "90"): expected}


def test_main_loops_are_within_their_budget():
    """The budget of instructions, and two blocks where shared memory has room for them."""
    _, numbers = compile_cuda.read(compile_cuda.TABLE.read_text())
    budgets = {
        "DeformConv2dForwardKernel<BFloat16,ForwardTile<BFloat16,256>>": 300,
        "DeformConv2dGradKernelPartsKernel<BFloat16>": 240 - 36,  # to locate samples
        "DeformConv2dColumnsKernel<BFloat16,8>": 160,
    }
    for kernel, budget in budgets.items():
        for architecture in compile_cuda.ARCHITECTURES:
            assert 0 < numbers[kernel, architecture]["instructions"] <= budget
        assert numbers[kernel, "90"]["blocks"] >= 2
