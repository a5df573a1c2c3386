# SPDX-License-Identifier: MIT
"""The package as installed."""

import os
import subprocess
import sys

import jax
import pytest

import jax_dcn
from jax_dcn import _native


def python(*arguments: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_public_names_are_those_of_the_contract():
    for name in ("deform_conv2d", "show_config", "available_implementations", "__version__"):
        assert hasattr(jax_dcn, name)


def test_native_kernels_are_installed():
    assert _native.why_not("cpu", "float32") is None
    assert "cpu: available" in jax_dcn.available_implementations()["native"]


def test_a_platform_without_kernels_says_why():
    assert "no native kernel for tpu" in _native.why_not("tpu")


def test_handlers_newer_than_jaxlib_are_not_registered():
    assert _native._newer_than_runtime((0, 1)) is None
    assert "rebuild jax_dcn or upgrade jax" in _native._newer_than_runtime((0, 99))


def test_show_config_names_versions_and_implementations():
    text = python("-m", "jax_dcn")
    assert jax.__version__ in text and "native:" in text and "CPU kernels:" in text


def test_import_does_not_need_flax():
    python("-c", "import sys; sys.modules['flax'] = None; import jax_dcn")


KERNELS = "from jax_dcn import _cpu; print(_cpu.DESCRIPTION, end='')"
CHECK = "tests/test_deform_conv2d.py::test_value_tangent_and_gradients_match_reference"


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_kernels_of_lesser_processors_match_reference(instruction_set):
    if python("-c", KERNELS) == "baseline":
        pytest.skip("this processor has one set of kernels")
    environment = dict(JAX_DCN_INSTRUCTION_SET=instruction_set)
    assert python("-c", KERNELS, **environment) == instruction_set
    tests = "native and float32 and (plain or every_option or wide or deep)"
    output = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECK, "-k", tests, **environment
    )
    assert "4 passed" in output
