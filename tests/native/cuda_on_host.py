# SPDX-License-Identifier: MIT
"""Runs the CUDA kernels on the host, under address and undefined-behaviour sanitizers, and compares
them with `jax_dcn.reference`: `python tests/native/cuda_on_host.py --seeds 20`

The `.cu` files are compiled by `cuda_host/build.py`, and their handlers registered in the place of
those for CPU: JAX's CPU then calls them, with arrays that have red zones and results that are NaN
until they are written. To add a kernel, add its sources to `SOURCES`, its handlers to `TARGETS` and
a check to `cuda_checks.py`.
"""

import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile
import types

import fuzz
import jax
from cuda_host.build import ROOT, SANITIZE, build

SOURCES = (
    "runtime/nothing.cu",
    "deform_conv2d/bins.cu",
    "deform_conv2d/columns.cc",
    "deform_conv2d/columns.cu",
    "deform_conv2d/sample_gradients.cu",
    "deform_conv2d/gather.cu",
    "deform_conv2d/forward.cu",
    "deform_conv2d/grad_kernel.cu",
    "deform_conv2d/grad_samples.cu",
    "deform_conv2d/fused.cc",
    "deform_roi_pool/forward.cu",
    "deform_roi_pool/backward.cu",
    "deform_roi_pool/handlers.cc",
)
TARGETS = {
    "jax_dcn_deform_conv2d_columns": "DeformConv2dColumns",
    "jax_dcn_deform_conv2d_columns_jvp": "DeformConv2dColumnsJvp",
    "jax_dcn_deform_conv2d_columns_backward": "DeformConv2dColumnsBackward",
    "jax_dcn_deform_conv2d_forward": "DeformConv2dForward",
    "jax_dcn_deform_conv2d_grad_kernel": "DeformConv2dGradKernel",
    "jax_dcn_deform_conv2d_samples_backward": "DeformConv2dSamplesBackward",
    "jax_dcn_deform_roi_pool_forward": "DeformRoIPoolForward",
    "jax_dcn_deform_roi_pool_jvp": "DeformRoIPoolJvp",
    "jax_dcn_deform_roi_pool_backward": "DeformRoIPoolBackward",
}


def stand_in(library: str) -> None:
    """Makes the handlers in the library those of JAX's CPU; before `jax_dcn` registers its own."""
    assert "jax_dcn" not in sys.modules
    handlers = ctypes.CDLL(library)
    module = types.ModuleType("jax_dcn._cpu")
    capsules = {name: jax.ffi.pycapsule(getattr(handlers, s)) for name, s in TARGETS.items()}
    module.__dict__.update(TARGETS=capsules, FFI_VERSION=(0, 0), describe=lambda: "emulated CUDA")
    sys.modules[module.__name__] = module


def check(library: str, seeds: int, only: str) -> None:
    """Runs in the sanitized process."""
    jax.config.update("jax_enable_x64", True)
    sys.path.append(str(ROOT))
    stand_in(library)
    import cuda_checks

    cuda_checks.grids_run = ctypes.CDLL(library).cuda_host_grids

    for name, (run, cases, dtypes) in cuda_checks.CHECKS.items():
        if only not in name:
            continue
        for seed in range(seeds):
            for i, case in enumerate(cases):
                # Each seed takes another type for each case.
                run(case, dtypes[(i + seed) % len(dtypes)], seed)
        print(f"{name}: {seeds * len(cases)} problems")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        return check(options.library, options.seeds, options.only)
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "kernels.so")
        build(library, [ROOT / "cuda" / source for source in SOURCES], SANITIZE)
        environment = fuzz.environment()
        # What is allocated is NaN in every floating-point type, however large it is.
        environment["ASAN_OPTIONS"] += f":max_malloc_fill_size={2**40}:malloc_fill_byte=255"
        command = [sys.executable, *sys.argv, "--library", str(library)]
        raise SystemExit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
