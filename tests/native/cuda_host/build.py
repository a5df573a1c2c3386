# SPDX-License-Identifier: MIT
"""Compiles `.cu` files for the host: `cuda_runtime.h` beside this file stands in for CUDA's.

To have a kernel proven here, launch it through `cuda/runtime/launch.cuh`, read the block's shared memory
through `SharedMemory<T>()`, and keep device instructions in wrappers that have a host version
(`cuda/runtime/instructions.cuh`). A CUDA intrinsic that is missing is a compile error: add it to `cuda_runtime.h`.
"""

import os
import pathlib
import subprocess
from collections.abc import Sequence

import jax

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fsanitize=float-cast-overflow",
    "-fno-sanitize-recover=all",
)


def build(
    library: pathlib.Path, sources: Sequence[pathlib.Path], flags: Sequence[str] = ()
) -> None:
    """Compiles the `.cu` files `sources` and the emulator into a shared library."""
    command = [
        *(os.environ.get("CXX", "c++"), "-std=gnu++17", "-Og", "-g1", "-shared", "-fPIC"),
        *("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas", *flags),
        *(f"-I{HERE}", f"-I{ROOT}", "-isystem", jax.ffi.include_dir()),
        *("-x", "c++", *map(str, [*sources, HERE / "grid.cc"]), "-o", str(library)),
    ]
    subprocess.run(command, check=True)
