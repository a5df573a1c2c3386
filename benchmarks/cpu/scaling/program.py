# SPDX-License-Identifier: MIT
"""The program that calls the kernels, with the library's executor or with the one that times items."""

import itertools
import os
import pathlib
import subprocess

from benchmarks.cpu.scaling.model import Loop
from tests.deform_conv2d.cases import Case

ROOT = pathlib.Path(__file__).parents[3]
HERE = pathlib.Path(__file__).parent
# As in cpu/CMakeLists.txt.
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mtune=haswell"],
    "avx512": [
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
        *("-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),
    ],
}


class Program:
    """Compiled for one instruction set, into a folder."""

    def __init__(self, instruction_set: str, folder: pathlib.Path, optimisation: str = "-O3"):
        self._folder = folder
        flags = ["-std=gnu++17", optimisation, "-DNDEBUG", "-pthread", "-Wno-psabi", f"-I{ROOT}"]
        flags += [f"-DJAX_DCN_ISA={instruction_set}", *FLAGS[instruction_set]]
        kernels, memory = ROOT / "cpu/deform_conv2d/kernels.cc", ROOT / "cpu/runtime/memory.cc"
        shared = self._compile(flags, kernels, memory, HERE / "call.cc")
        for name, executor in {
            "timed": HERE / "timed_executor.cc",
            "threads": ROOT / "cpu/runtime/executor.cc",
        }.items():
            objects = [*shared, *self._compile(flags, executor)]
            _compiler("-pthread", *objects, "-o", self._folder / name)

    def _compile(self, flags: list[str], *sources: pathlib.Path) -> list[pathlib.Path]:
        objects = [self._folder / f"{source.stem}.o" for source in sources]
        for source, result in zip(sources, objects, strict=True):
            _compiler(*flags, "-c", source, "-o", result)
        return objects

    def loops(self, case: Case, mode: str, workers: int, calls: int) -> list[Loop]:
        """The loops of a call for so many workers: the least times of each item over some calls."""
        lines = self._run("timed", case, mode, workers, 0, calls)
        calls_of_loops = [
            [Loop(*map(int, line.split())) for line in call if line[0].isdigit()]
            for is_call, call in itertools.groupby(lines, lambda line: not line.startswith("call"))
            if is_call
        ]
        return [Loop.least(loops) for loops in zip(*calls_of_loops, strict=True)]

    def seconds(self, case: Case, mode: str, threads: int, calls: int) -> float:
        """The least time of a call by the library's executor."""
        lines = self._run("threads", case, mode, threads, threads - 1, calls)
        return min(int(line.split()[1]) for line in lines) / 1e9

    def _run(self, program: str, case: Case, *arguments) -> list[str]:
        command = [self._folder / program, *map(str, arguments), *map(str, numbers(case))]
        return subprocess.check_output(command, text=True).splitlines()


def numbers(case: Case) -> list[int]:
    """A case as call.cc reads it."""
    geometry = case.geometry
    (top, bottom), (left, right) = geometry.padding
    return [
        *(case.batch, *case.image, case.channels, case.features, *case.kernel),
        *(case.offset_groups, int(case.modulated), *geometry.strides, top, bottom, left, right),
        *(*geometry.kernel_dilation, case.feature_group_count),
    ]


def _compiler(*arguments) -> None:
    subprocess.run([os.environ.get("CXX", "c++"), *map(str, arguments)], check=True)
