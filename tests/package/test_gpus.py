# SPDX-License-Identifier: MIT
"""On GPUs and drivers that cannot run the CUDA kernels, operators run on XLA and say why.

The machine needs no GPU: devices, driver and kernels are stand-ins.
"""

import functools
import types
from collections.abc import Sequence

import jax
import pytest

from jax_dcn import available_implementations, deform_conv2d
from jax_dcn._src.operator import gpus, libraries
from jax_dcn._src.registry import OPERATORS
from jax_dcn.installation import show_config

BUILT = "CUDA 13.0 for sm_80, sm_86, sm_90, sm_100"
TARGETS = [kernels.target for o in OPERATORS.values() for kernels in o.primitive.native]


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine with GPUs of some compute capabilities and a driver."""

    def make(*capabilities: str, driver: tuple[int, int] | None = (13, 0), built: str = BUILT):
        client = types.SimpleNamespace(platform_version="cuda 13000")
        found = [
            types.SimpleNamespace(
                platform="gpu", client=client, device_kind=f"GPU {c}", compute_capability=c
            )
            for c in capabilities
        ]
        kernels = types.SimpleNamespace(DESCRIPTION=built, FFI_VERSION=(0, 1), TARGETS=TARGETS)
        monkeypatch.setattr(jax, "devices", lambda platform=None: found)
        monkeypatch.setattr(gpus, "driver", lambda: driver)
        monkeypatch.setitem(libraries._extensions, "cuda", kernels)
        monkeypatch.delitem(libraries._unavailable, "cuda", raising=False)

    return make


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0"])
def test_kernels_run_on_gpus_that_have_code_or_make_it_of_the_newest(machine, capability):
    machine(capability)
    assert libraries.why_not("cuda") is None


@pytest.mark.parametrize(
    ("capability", "built", "sentences"),
    [
        ("7.5", BUILT, ("GPU 7.5 has compute capability 7.5", "older than 8.0")),
        ("8.6", "CUDA 13.0 for sm_90", ("built by CUDA 13.0 for sm_90", "ARCHITECTURES=86")),
        ("8.0", "CUDA 12.8 for sm_86", ("ARCHITECTURES=80",)),
        ("10.0", "CUDA 13.0 for sm_80, sm_90a", ("sm_90a", "ARCHITECTURES=100")),
        ("12.1", "CUDA 13.0 for sm_90, sm_120a", ("ARCHITECTURES=121",)),
    ],
)
@pytest.mark.filterwarnings("ignore:On cuda")
def test_a_gpu_without_code_is_named_with_the_remedy(machine, capability, built, sentences):
    machine(capability, built=built)
    for sentence in sentences:
        assert sentence in libraries.why_not("cuda")


@pytest.mark.parametrize(
    ("driver", "capability", "runs"),
    [
        ((12, 9), "9.0", False),  # of an older major version
        ((13, 0), "12.0", False),  # makes no code of the newer PTX
        ((13, 0), "9.0", True),
        ((13, 1), "12.0", True),
        ((14, 0), "8.0", True),
        (None, "8.0", True),
    ],
)
@pytest.mark.filterwarnings("ignore:On cuda")
def test_a_driver_runs_kernels_of_its_own_major_version(machine, driver, capability, runs):
    machine(capability, driver=driver, built="CUDA 13.1 for sm_80, sm_90")
    reason = libraries.why_not("cuda")
    assert (reason is None) == runs
    assert runs or "built by CUDA 13.1; update the driver" in reason


def arrays() -> Sequence[jax.ShapeDtypeStruct]:
    shapes = (2, 9, 11, 64), (3, 3, 64, 64), (2, 9, 11, 1, 9, 2)
    return [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]


def lowered(implementation: str | None) -> str:
    f = functools.partial(deform_conv2d, implementation=implementation)
    return jax.jit(f).trace(*arrays()).lower(lowering_platforms=("cuda",)).as_text()


def test_where_gpus_cannot_run_kernels_programs_have_none_and_warn(machine):
    machine("9.0")
    assert "custom_call @jax_dcn" in lowered(None)
    machine("9.0", "7.5")
    with pytest.warns(RuntimeWarning, match="on XLA, slowly: GPU 7"):
        assert "custom_call @jax_dcn" not in lowered(None)
    with pytest.warns(RuntimeWarning), pytest.raises(NotImplementedError, match=r"older than 8\.0"):
        lowered("native")


def test_without_a_gpu_programs_for_others_have_kernels(machine, monkeypatch):
    def no_devices(platform=None):
        raise RuntimeError(f"Unknown backend {platform}.")

    machine()
    monkeypatch.setattr(jax, "devices", no_devices)
    assert "custom_call @jax_dcn" in lowered("native")


@pytest.mark.filterwarnings("ignore:On cuda")
def test_the_configuration_says_why_in_one_sentence(machine, capsys):
    machine("7.5")
    sentence = "GPU 7.5 has compute capability 7.5"
    assert f"cuda: {sentence}" in available_implementations()["native"]
    show_config.show_config()
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("deform_conv2d on cuda:"))
    assert f"xla, because {sentence}" in line


def test_the_description_of_the_library_is_understood():
    if reason := libraries._unavailable.get("cuda"):
        pytest.skip(reason)
    built = libraries._extensions["cuda"].DESCRIPTION
    toolkit, codes = gpus.parsed(built)
    assert toolkit >= (12, 0) and codes and all(code.isalnum() for code in codes)
