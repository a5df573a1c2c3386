# SPDX-License-Identifier: MIT
"""What the build says where there is no nvcc."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja")), reason="there is no cmake, or no ninja"
)


def configure(folder: pathlib.Path, mode: str) -> subprocess.CompletedProcess:
    """Configures a build whose search for nvcc has found none."""
    pybind11 = pytest.importorskip("pybind11")
    definitions = dict(
        JAX_DCN_CUDA=mode,
        JAX_DCN_NVCC="",
        Python_EXECUTABLE=sys.executable,
        pybind11_DIR=pybind11.get_cmake_dir(),
    )
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    environment = {name: value for name, value in os.environ.items() if name != "CUDACXX"}
    command = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_without_nvcc_the_build_is_for_cpu_unless_it_must_be_for_cuda(tmp_path):
    done = configure(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    assert "jax_dcn: built for CPU only: no nvcc on the path" in done.stdout
    done = configure(tmp_path, "ON")
    assert done.returncode != 0
    assert "nvidia-cuda-nvcc" in done.stderr and "CUDACXX" in done.stderr
    done = configure(tmp_path, "OFF")
    assert done.returncode == 0 and "jax_dcn: built" not in done.stdout
    done = configure(tmp_path, "yes")
    assert done.returncode != 0 and "must be AUTO, ON or OFF, got yes" in done.stderr
