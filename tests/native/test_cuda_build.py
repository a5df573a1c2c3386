# SPDX-License-Identifier: MIT
"""The build configures for the GPUs that it is asked for, and says why where it cannot."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja")), reason="there is no cmake, or no ninja"
)
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")


def configure(
    folder: pathlib.Path, path: pathlib.Path | None = None, **definitions: str
) -> subprocess.CompletedProcess:
    """Configures a build with `path` before the search path for programs."""
    pybind11 = pytest.importorskip("pybind11")
    definitions |= dict(Python_EXECUTABLE=sys.executable, pybind11_DIR=pybind11.get_cmake_dir())
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    environment = {name: value for name, value in os.environ.items() if name != "CUDACXX"}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    command = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_without_nvcc_the_build_is_for_cpu_unless_it_must_be_for_cuda(tmp_path):
    found_none = dict(JAX_DCN_NVCC="")
    done = configure(tmp_path, JAX_DCN_CUDA="AUTO", **found_none)
    assert done.returncode == 0, done.stderr
    assert "jax_dcn: built for CPU only: no nvcc on the path" in done.stdout
    done = configure(tmp_path, JAX_DCN_CUDA="ON", **found_none)
    assert done.returncode != 0
    assert "nvidia-cuda-nvcc" in done.stderr and "CUDACXX" in done.stderr
    done = configure(tmp_path, JAX_DCN_CUDA="OFF", **found_none)
    assert done.returncode == 0 and "jax_dcn: built" not in done.stdout
    done = configure(tmp_path, JAX_DCN_CUDA="yes", **found_none)
    assert done.returncode != 0 and "must be AUTO, ON or OFF, got yes" in done.stderr


def test_without_a_compiler_the_build_is_of_python_alone_unless_there_must_be_kernels(tmp_path):
    no_compiler = dict(CMAKE_CXX_COMPILER="NOTFOUND")
    done = configure(tmp_path, **no_compiler)
    assert done.returncode == 0, done.stderr
    assert "built without kernels, to run on XLA: there is no C++ compiler" in done.stdout
    for option in ("JAX_DCN_CPU", "JAX_DCN_CUDA"):
        done = configure(tmp_path / option, **no_compiler, **{option: "ON"})
        assert done.returncode != 0
        assert "kernels are asked for, but there is no C++ compiler" in done.stderr


def fake_nvidia_smi(folder: pathlib.Path, output: str, status: int = 0) -> pathlib.Path:
    """A folder with a program `nvidia-smi` that prints `output`."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {status}\n")
    program.chmod(0o755)
    return program.parent


def compiled_for(folder: pathlib.Path) -> set[str]:
    """The code that the configured build makes of a kernel."""
    return set(re.findall(r"code=\[(\w+)\]", (folder / "build.ninja").read_text()))


@needs_nvcc
@pytest.mark.parametrize(
    ("architectures", "code"),
    [
        ("90", {"sm_90", "compute_90"}),
        ("native", {"sm_89", "sm_90", "compute_90"}),
        (
            "80;86;89;90;100;120",
            {*(f"sm_{a}" for a in (80, 86, 89, 90, 100, 120)), "compute_120"},
        ),
    ],
)
def test_kernels_are_compiled_for_the_architectures_asked_for(tmp_path, architectures, code):
    path = fake_nvidia_smi(tmp_path, "8.9\\n9.0\\n9.0\\n")
    folder = tmp_path / "build"
    done = configure(folder, path, JAX_DCN_CUDA="ON", JAX_DCN_CUDA_ARCHITECTURES=architectures)
    assert done.returncode == 0, done.stderr
    assert compiled_for(folder) == code


@needs_nvcc
@pytest.mark.parametrize("architectures", ["75", "80;75", "fast", "70-real"])
def test_architectures_without_kernels_are_refused(tmp_path, architectures):
    done = configure(tmp_path, JAX_DCN_CUDA="ON", JAX_DCN_CUDA_ARCHITECTURES=architectures)
    message = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert f"80 or newer like 80;90, got {architectures}" in message and "xla" in message


@needs_nvcc
def test_native_needs_a_gpu(tmp_path):
    path = fake_nvidia_smi(tmp_path, "", status=9)
    folder = tmp_path / "build"
    done = configure(folder, path, JAX_DCN_CUDA="ON", JAX_DCN_CUDA_ARCHITECTURES="native")
    assert done.returncode != 0 and "nvidia-smi finds no GPU" in " ".join(done.stderr.split())
