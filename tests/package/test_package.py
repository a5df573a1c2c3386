# SPDX-License-Identifier: MIT
"""The package as installed."""

import dataclasses
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

import jax_dcn
from jax_dcn._src.operator import libraries
from jax_dcn._src.registry import OPERATORS
from jax_dcn.installation import selfcheck

ROOT = pathlib.Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_native_kernels_are_installed():
    assert libraries.why_not("cpu") is None
    assert "cpu: available" in jax_dcn.available_implementations()["native"]


def test_a_platform_without_kernels_says_why():
    assert "no native kernel for tpu" in libraries.why_not("tpu")


def test_handlers_newer_than_jaxlib_are_not_registered():
    assert libraries._newer_than_runtime((0, 1)) is None
    assert "rebuild jax_dcn or upgrade jax" in libraries._newer_than_runtime((0, 99))


def test_show_config_names_versions_and_implementations():
    text = python("-m", "jax_dcn")
    assert jax.__version__ in text and "CPU kernels:" in text
    assert re.search("deform_conv2d on cpu: +native;", text)


def test_every_operator_has_a_line_in_the_configuration_and_a_check():
    text = python("-m", "jax_dcn", "--selfcheck")
    for operator in OPERATORS:
        assert re.search(f"^{operator} on cpu: +native;", text, re.MULTILINE)
        assert re.search(f"^{operator} native, cpu, float32: ok", text, re.MULTILINE)


def test_selfcheck_passes_here(capsys):
    assert selfcheck.selfcheck()
    assert "deform_conv2d native, cpu, bfloat16: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil", [jax.lax.stop_gradient, lambda x: x + 0 * jnp.sqrt(x - x)], ids=["zero", "nan"]
)
def test_selfcheck_finds_a_wrong_gradient(spoil, monkeypatch, capsys):
    def planted(*arrays, implementation):
        x, *others = arrays
        x = spoil(x) if implementation == "native" else x
        return operator.problem.function(x, *others, implementation=implementation)

    operator = OPERATORS["deform_conv2d"]
    problem = dataclasses.replace(operator.problem, function=planted, known=None)
    monkeypatch.setattr(
        selfcheck, "OPERATORS", {"deform_conv2d": operator._replace(problem=problem)}
    )
    monkeypatch.setattr(selfcheck, "_TOLERANCE", {"float32": 1e-5})
    assert not selfcheck.selfcheck()
    assert "deform_conv2d native, cpu, float32: WRONG" in capsys.readouterr().out


RUN_ON_XLA = """
import sys, types, warnings
sys.modules["jax_dcn._cpu"] = {module}
with warnings.catch_warnings(record=True) as caught:
    import jax, jax.numpy as jnp, jax_dcn
print([str(w.message) for w in caught if w.category is RuntimeWarning])
call = lambda implementation: jax_dcn.deform_conv2d(
    jnp.ones((1, 4, 5, 2)), jnp.ones((1, 1, 2, 3)), jnp.zeros((1, 4, 5, 1, 1, 2)),
    implementation=implementation,
)
print(call(None).shape)
try:
    call("native")
except NotImplementedError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("None", "jax_dcn was built without cpu kernels"),
        (
            'types.SimpleNamespace(__name__="jax_dcn._cpu", FFI_VERSION=(0, 99))',
            "jax_dcn was built for version 0.99 of XLA's extension interface",
        ),
    ],
    ids=["missing", "too new"],
)
def test_without_kernels_it_imports_runs_on_xla_and_says_why(module, sentence):
    warned, shape, refused = python("-c", RUN_ON_XLA.format(module=module)).splitlines()
    assert warned.count("On cpu, jax_dcn runs on XLA, slowly: " + sentence) == 1
    assert shape == "(1, 4, 5, 3)"
    assert sentence in refused


def test_missing_kernels_say_where_to_get_them(monkeypatch, tmp_path):
    assert f"{ROOT} holds its sources: start Python elsewhere" in libraries._how_to_get("cpu")
    monkeypatch.setattr(
        libraries, "__file__", str(tmp_path / "jax_dcn" / "_src" / "operator" / "libraries.py")
    )
    assert "reinstall it from a wheel" in libraries._how_to_get("cpu")
    assert "build jax-dcn where nvcc is" in libraries._how_to_get("cuda")
    monkeypatch.setattr(libraries.sys, "platform", "win32")
    assert libraries._how_to_get("cpu") == "there are kernels for Linux and macOS only"


def test_kernels_of_another_version_are_named_with_the_remedy(monkeypatch):
    kernels = types.ModuleType("jax_dcn_cuda13._cuda")
    monkeypatch.setattr(libraries.importlib.metadata, "version", lambda name: "0.2.0")
    assert libraries._of_another_version(kernels) is None
    versions = {"jax-dcn-cuda13": "0.1.9", "jax-dcn": "0.2.0"}
    monkeypatch.setattr(libraries.importlib.metadata, "version", versions.__getitem__)
    reason = libraries._of_another_version(kernels)
    assert "jax-dcn-cuda13 0.1.9 and jax-dcn 0.2.0 are out of step" in reason
    assert reason.endswith("pip install jax-dcn-cuda13==0.2.0")


def test_kernels_whose_version_is_unknown_are_not_used(monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries.importlib.metadata, "version", version)
    reason = libraries._of_another_version(types.ModuleType("jax_dcn_cuda13._cuda"))
    assert reason.startswith("jax-dcn-cuda13 and jax-dcn have versions that cannot be compared: ")
    assert reason.endswith("jax-dcn-cuda13")


def test_the_wheel_of_kernels_is_that_of_the_plugins_cuda(monkeypatch):
    monkeypatch.setattr(libraries, "_plugins", lambda: {"jax-cuda12-plugin": "0.10.2"})
    assert libraries._modules("cuda") == ["jax_dcn._cuda", "jax_dcn_cuda12._cuda"]
    assert libraries._modules("cpu") == ["jax_dcn._cpu"]


def test_a_plugin_out_of_step_with_jaxlib_is_named_with_the_remedy(monkeypatch):
    assert libraries._out_of_step("cuda") is None
    monkeypatch.setattr(libraries, "_plugins", lambda: {"jax-cuda13-plugin": "0.1.2"})
    reason = libraries._out_of_step("cuda")
    assert "jax-cuda13-plugin 0.1.2 and jaxlib" in reason
    assert f'pip install "jax[cuda13]=={jax.__version__}"' in reason
    assert libraries._out_of_step("cpu") is None


def test_import_does_not_need_flax():
    python("-c", "import sys; sys.modules['flax'] = None; import jax_dcn")


@pytest.mark.parametrize("name", ["avx3", "AVX2", "amx_fp8"])
def test_an_unknown_instruction_set_is_refused(name):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python("-c", "import jax_dcn", JAX_DCN_INSTRUCTION_SET=name)
    assert f"JAX_DCN_INSTRUCTION_SET='{name}' names no kernels" in failed.value.stderr
    assert "expected 'baseline', 'avx2', 'avx512' or 'avx512_bf16'" in failed.value.stderr


KERNELS = "from jax_dcn import _cpu; print(_cpu.DESCRIPTION, end='')"
CHECK = "tests/laws/test_values.py::test_value_tangent_and_gradients_match_reference"


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_kernels_of_lesser_processors_match_reference(instruction_set):
    if python("-c", KERNELS) == "baseline":
        pytest.skip("this processor has one set of kernels")
    environment = dict(JAX_DCN_INSTRUCTION_SET=instruction_set)
    assert python("-c", KERNELS, **environment) == instruction_set
    tests = "deform_conv2d and native and float32 and (plain or every_option or wide or deep)"
    output = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECK, "-k", tests, **environment
    )
    assert "4 passed" in output
