# SPDX-License-Identifier: MIT
"""Runs the CUDA kernels on the host, under address and undefined-behaviour sanitizers, and compares
them with `jax_dcn.reference`: `python tests/native/cuda_on_host.py --seeds 20`

The `.cu` files are compiled by `cuda_host/build.py`, and their handlers registered in the place of
those for CPU: JAX's CPU then calls them, with arrays that have red zones and results that are NaN
until they are written. To add a kernel, add a check to `cuda_checks.py`.
"""

import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile
import types

import cuda_outside
import fuzz
import targets
from cuda_host.build import ROOT, build

# The operators that have CUDA kernels.
OPERATORS = [name for name in targets.OPERATORS if (ROOT / "cuda" / name).is_dir()]
FOLDERS = ("runtime", "sampling", *OPERATORS)
SOURCES = [
    *(targets.SOURCE, ROOT / "cuda/library.cc"),
    *(file for folder in FOLDERS for file in sorted((ROOT / "cuda" / folder).glob("*.c[cu]"))),
]
FLAGS = [
    "-fsanitize=address,undefined",
    *targets.UNDEFINED,
    '-DJAX_DCN_CUDA_ARCHITECTURES="the host"',
    "-DJAX_DCN_BUSY_THREADS=2048",  # so that small problems have more rows than keep a GPU busy
    *targets.definitions("CudaLibrary", OPERATORS),
]


def stand_in(library: str) -> None:
    """Makes the handlers in the library those of JAX's CPU; before `jax_dcn` registers its own."""
    assert "jax_dcn" not in sys.modules
    module = types.ModuleType("jax_dcn._cpu")
    module.__dict__.update(
        TARGETS=targets.capsules(library), FFI_VERSION=(0, 0), DESCRIPTION="emulated CUDA"
    )
    sys.modules[module.__name__] = module


def check(library: str, seeds: int, only: str) -> None:
    """Runs in the sanitized process."""
    cuda_outside.configure()
    sys.path.append(str(ROOT))
    stand_in(library)
    import cuda_checks

    cuda_checks.grids_run = ctypes.CDLL(library).cuda_host_grids

    checks = [(name, check, 1) for name, check in cuda_checks.RULES.items()]
    checks += [(name, check, seeds) for name, check in cuda_checks.CHECKS.items()]
    for name, (run, cases, dtypes), times in checks:
        if only not in name:
            continue
        for seed in range(times):
            for i, case in enumerate(cases):
                # Each seed takes another type for each case.
                run(case, dtypes[(i + seed) % len(dtypes)], seed)
        conflicts = ctypes.CDLL(library).cuda_host_bank_conflicts()
        assert conflicts == 0, f"{name}: {conflicts} bank conflicts"
        print(f"{name}: {times * len(cases)} problems")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        return check(options.library, options.seeds, options.only)
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "kernels.so")
        build(library, SOURCES, FLAGS)
        environment = fuzz.environment()
        # What is allocated is NaN in every floating-point type, however large it is.
        environment["ASAN_OPTIONS"] += f":max_malloc_fill_size={2**40}:malloc_fill_byte=255"
        # XLA's compiler allocates often. The stack of each allocation is expensive, and so is much
        # memory that waits after it was freed.
        environment["ASAN_OPTIONS"] += ":malloc_context_size=1:quarantine_size_mb=4"
        command = [sys.executable, *sys.argv, "--library", str(library)]
        raise SystemExit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
