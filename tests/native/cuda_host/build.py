# SPDX-License-Identifier: MIT
"""Compiles `.cu` files for the host: `cuda_runtime.h` beside this file stands in for CUDA's.

To have a kernel proven here, launch it through `cuda/runtime/launch.cuh`, read the block's shared memory
through `SharedMemory<T>()`, and keep device instructions in wrappers that have a host version
(`cuda/runtime/instructions.cuh`). A CUDA intrinsic that is missing is a compile error: add it to `cuda_runtime.h`.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

import jax

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]


def build(
    library: pathlib.Path, sources: Sequence[pathlib.Path], flags: Sequence[str] = ()
) -> None:
    """Compiles the `.cu` files `sources` and the emulator, side by side, into a shared library."""
    compiler = os.environ.get("CXX", "c++")
    options = ["-std=gnu++17", "-Og", "-g1", "-fPIC", *flags]
    options += ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas"]
    options += ["-Wno-unused-const-variable"]  # the bounds of a launch, which only nvcc reads
    options += [f"-I{HERE}", f"-I{ROOT}", "-isystem", jax.ffi.include_dir()]
    with tempfile.TemporaryDirectory() as folder:

        def compiled(numbered: tuple[int, pathlib.Path]) -> str:
            number, source = numbered
            output = f"{folder}/{number}.o"
            command = [compiler, *options, "-x", "c++", "-c", str(source), "-o", output]
            subprocess.run(command, check=True)
            return output

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, enumerate([*sources, HERE / "grid.cc"])))
        subprocess.run([compiler, "-shared", *flags, *objects, "-o", str(library)], check=True)
