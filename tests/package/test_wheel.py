# SPDX-License-Identifier: MIT
"""The source distribution builds from itself, and its wheel serves an environment without compiler."""

import os
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import jax
import numpy as np
import pytest

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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built as `python -m build` does, by way of the source distribution, in this environment."""
    folder = tmp_path_factory.mktemp("dist")
    # Headers of the running jaxlib serve the running jaxlib; a release takes the oldest.
    options = ["--no-isolation", "--skip-dependency-check", "-Ccmake.define.JAX_DCN_CUDA=OFF"]
    options += ["-Ccmake.build-type=Debug"]  # which takes a third of the time to compile
    output = python("-m", "build", *options, "--outdir", folder, ROOT)
    assert "Successfully built" in output
    return next(folder.glob("*.whl"))


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
    environment = tmp_path / "wheel"
    venv.create(environment)
    installed = environment / "bin" / "python"
    python("-m", "pip", "--python", installed, "install", "--no-deps", "--quiet", wheel)
    # JAX and NumPy are those of this environment, whose package ours must not be.
    packages = {str(pathlib.Path(module.__file__).parents[1]) for module in (jax, np)}
    variables = {"PYTHONPATH": ":".join(packages), "PATH": str(environment / "bin")}
    site = python("-c", "import site; print(site.getsitepackages()[0])", executable=installed)
    path = {**variables, "PYTHONPATH": f"{site.strip()}:{variables['PYTHONPATH']}"}
    assert "(1, 5, 6, 1, 9, 2)" in python("-c", EXAMPLE, executable=installed, **path)


def test_a_wheel_needs_nothing_that_manylinux_lacks(wheel):
    pytest.importorskip("auditwheel")
    report = python("-m", "auditwheel", "show", wheel)
    assert "manylinux" in report, report
