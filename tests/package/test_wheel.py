# SPDX-License-Identifier: MIT
"""The source distribution builds from itself, and its wheel serves an environment without compiler."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import jax
import numpy as np
import pytest

import jax_dcn

ROOT = pathlib.Path(__file__).parents[2]
pytest.importorskip("build")
pytest.importorskip("scikit_build_core")

EXAMPLE = """
import jax, jax.numpy as jnp, jax_dcn
assert "wheel" in jax_dcn.__file__, jax_dcn.__file__
x, kernel, offset = jnp.ones((1, 5, 6, 2)), jnp.ones((3, 3, 2, 4)), jnp.zeros((1, 5, 6, 1, 9, 2))
loss = lambda offset: jax_dcn.deform_conv2d(x, kernel, offset, implementation="native").sum()
print(jax.grad(loss)(offset).shape)
"""


def python(*arguments: object, executable: object = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [str(argument) for argument in (executable, *arguments)],
        cwd=pathlib.Path(sys.executable).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder: pathlib.Path, source: pathlib.Path, *options: str) -> pathlib.Path:
    """The wheel that `python -m build` makes in this environment."""
    # Headers of the running jaxlib serve the running jaxlib; a release takes the oldest.
    command = ["-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", folder]
    output = python(*command, *options, source)
    assert "Successfully built" in output
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built by way of the source distribution."""
    # A debug build takes a third of the time to compile.
    options = ("-Ccmake.define.JAX_DCN_CUDA=OFF", "-Ccmake.build-type=Debug")
    return build(tmp_path_factory.mktemp("dist"), ROOT, *options)


OLD_COMPILER = """#!/bin/sh
case "$*" in *-mamx-tile*) echo unrecognized option >&2; exit 1;; esac
exec c++ "$@"
"""


@pytest.fixture(scope="module", params=["no compiler", "an old compiler"])
def pure_wheel(request, tmp_path_factory) -> pathlib.Path:
    """Built where there is no compiler, or one that is too old for the kernels."""
    folder = tmp_path_factory.mktemp("pure")
    compiler = "NOTFOUND"
    if request.param == "an old compiler":
        if platform.machine() != "x86_64" or not shutil.which("c++"):
            pytest.skip("the kernels need a new compiler on x86-64")
        compiler = folder / "c++"
        compiler.write_text(OLD_COMPILER)
        compiler.chmod(0o700)
    options = (f"-Ccmake.define.CMAKE_CXX_COMPILER={compiler}", f"-Cbuild-dir={folder / 'build'}")
    return build(folder, ROOT, "--wheel", *options)


@pytest.fixture(scope="module")
def cuda_wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cuda")
    options = ("-Ccmake.define.JAX_DCN_CUDA_ARCHITECTURES=80", f"-Cbuild-dir={folder / 'build'}")
    return build(folder, ROOT / "packaging" / "cuda13", "--wheel", *options)


class Environment:
    """An environment with wheels, no compiler, and JAX and NumPy of this environment."""

    def __init__(self, folder: pathlib.Path, *wheels: pathlib.Path):
        venv.create(folder)
        self._python = folder / "bin" / "python"
        python("-m", "pip", "--python", self._python, "install", "--no-deps", "--quiet", *wheels)
        packages = {str(pathlib.Path(module.__file__).parents[1]) for module in (jax, np)}
        self._variables = {"PYTHONPATH": ":".join(packages), "PATH": str(folder / "bin")}
        site = self.run("-c", "import site; print(site.getsitepackages()[0])").strip()
        # The wheels come before the package of this environment.
        self._variables["PYTHONPATH"] = f"{site}:{self._variables['PYTHONPATH']}"

    def run(self, *arguments: str) -> str:
        return python(*arguments, executable=self._python, **self._variables)


def test_a_wheel_holds_the_package_and_its_libraries_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {pathlib.Path(name).parts[0] for name in names} <= {
        "jax_dcn",
        f"{wheel.name.split('-cp')[0]}.dist-info",
    }
    assert {"jax_dcn/libjax_dcn_cpu.so", "jax_dcn/py.typed", "jax_dcn/_cpu.pyi"} <= set(names)


def test_a_source_distribution_holds_what_it_needs(wheel):
    archive = next(wheel.parent.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert {"CMakeLists.txt", "common/ffi/module.cc", "cpu/library.cc", "pyproject.toml"} <= names


def test_a_wheel_runs_where_there_is_no_compiler(wheel, tmp_path):
    assert "(1, 5, 6, 1, 9, 2)" in Environment(tmp_path / "wheel", wheel).run("-c", EXAMPLE)


def test_without_a_new_compiler_the_package_is_built_and_runs_on_xla(pure_wheel, tmp_path):
    names = zipfile.ZipFile(pure_wheel).namelist()
    assert "jax_dcn/__init__.py" in names and not [name for name in names if ".so" in name]
    output = Environment(tmp_path / "wheel", pure_wheel).run("-m", "jax_dcn")
    assert output.count("On cpu, jax_dcn runs on XLA, slowly: jax_dcn was built without cpu") == 1


CUDA = """
import jax, jax.numpy as jnp, jax_dcn
f = jax.jit(lambda *a: jax_dcn.deform_conv2d(*a, implementation="native"))
arrays = jnp.ones((1, 5, 6, 2)), jnp.ones((3, 3, 2, 4)), jnp.zeros((1, 5, 6, 1, 9, 2))
print(f.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text())
"""


@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
def test_the_wheel_of_cuda_kernels_serves_the_package_beside_it(wheel, cuda_wheel, tmp_path):
    names = [pathlib.Path(name) for name in zipfile.ZipFile(cuda_wheel).namelist()]
    files = [path.name.split(".")[0] for path in names if path.parts[0] == "jax_dcn_cuda13"]
    assert sorted(files) == ["_cuda", "libjax_dcn_cuda"]
    environment = Environment(tmp_path / "wheel", wheel, cuda_wheel)
    assert "CUDA kernels: CUDA 13" in " ".join(environment.run("-m", "jax_dcn").split())
    assert "custom_call @jax_dcn_deform_conv2d" in environment.run("-c", CUDA)


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_the_wheels_of_kernels_are_of_the_version_of_the_package(cuda):
    read = lambda path: tomllib.loads((ROOT / path / "pyproject.toml").read_text())["project"]
    kernels, package = read(f"packaging/cuda{cuda}"), read(".")
    assert kernels["version"] == package["version"] == jax_dcn.__version__
    pinned = f"{kernels['name']}=={kernels['version']}"
    for extra in (f"cuda{cuda}", f"cuda{cuda}-local"):
        assert any(pinned in entry for entry in package["optional-dependencies"][extra])


def test_a_wheel_needs_nothing_that_manylinux_lacks(wheel):
    pytest.importorskip("auditwheel")
    report = python("-m", "auditwheel", "show", wheel)
    assert "manylinux" in report, report
