# SPDX-License-Identifier: MIT
"""The cost model that chooses between the fused CUDA kernels and columns in memory."""

import dataclasses
import types

import jax
import pytest

from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn._src.operator import gpus
from tests.native import compile_cuda

ALL = ("x", "kernel", "offset", "mask", "bias")


def layer(batch=16, size=28, channels=256, features=None, dtype="bfloat16") -> dict:
    shapes = dict(
        x=(batch, size, size, channels),
        kernel=(3, 3, channels, features or channels),
        offset=(batch, size, size, 1, 9, 2),
    )
    arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    return arrays | dict(geometry=conv_geometry((size, size), (3, 3)))


# In microseconds, of the review's own model of compiled kernels.
@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (dict(batch=16, size=28, channels=256), 54),
        (dict(batch=16, size=56, channels=128), 83),
        (dict(batch=32, size=14, channels=512), 79),
    ],
)
def test_times_are_those_predicted_by_hand_for_an_h100(options, columns):
    times = cost.microseconds(cost.GPUS[90], **layer(**options))
    assert times["columns"] == pytest.approx(columns, rel=0.1)
    assert times["fused"] > columns


@pytest.mark.parametrize("capability", cost.GPUS)
def test_fused_kernels_run_where_tensor_cores_are_the_narrow_part(capability):
    gpu = cost.GPUS[capability]
    for wrt in ((), ALL):
        times = cost.microseconds(gpu, **layer(), wrt=wrt)
        fused = times["fused"] < times["columns"]
        # A100's tensor cores are in between: its backward pass multiplies columns in memory.
        assert fused == (capability in (86, 89, 120) or (capability == 80 and not wrt))


def test_time_grows_with_what_there_is_to_do():
    gpu = cost.GPUS[90]
    for path in cost.PATHS:
        of = lambda path=path, wrt=(), **options: cost.microseconds(
            gpu, **layer(**options), wrt=wrt
        )[path]
        assert of(batch=32) == pytest.approx(2 * of())
        assert of(dtype="float32") == pytest.approx(2 * of())
        assert of(features=512) > of()
        assert of(wrt=ALL) > of(wrt=("kernel",)) > 0
        assert of(wrt=ALL) > of(wrt=("offset", "mask")) > 0


def test_a_measured_factor_corrects_the_choice(monkeypatch):
    gpu = cost.GPUS[89]
    monkeypatch.delenv(cost.VARIABLE, raising=False)
    monkeypatch.setattr(cost, "gpu_here", lambda: gpu)
    arrays = layer(size=56)
    geometry, operands = arrays.pop("geometry"), tuple(arrays.values())
    for wrt, factor in (((), "forward"), (ALL, "backward")):
        gpu = cost.GPUS[89]
        assert cost.why_not_fused(*operands, wrt=wrt, geometry=geometry) is None
        gpu = dataclasses.replace(gpu, **{factor: 2.0})
        assert "RTX 4090" in cost.why_not_fused(*operands, wrt=wrt, geometry=geometry)


def test_figures_are_those_of_the_gpu(monkeypatch):
    for capability, name in (("8.7", "RTX 3090"), ("10.3", "B200"), ("12.1", "RTX 5090")):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(gpus, "devices", lambda device=device: [device])
        assert cost.gpu_here().name == name
    monkeypatch.setattr(gpus, "devices", lambda: [])
    assert cost.gpu_here().name == "H100"


def test_instructions_are_those_of_the_compiled_kernels():
    _, table = compile_cuda.read(compile_cuda.TABLE.read_text())
    counted = {
        "forward, 256 features": "DeformConv2dForwardKernel<BFloat16,ForwardTile<BFloat16,256>>",
        "forward, 128 features": "DeformConv2dForwardKernel<BFloat16,ForwardTile<BFloat16,128>>",
        "columns": "DeformConv2dColumnsKernel<BFloat16,8>",
        "gradients of samples from columns": "DeformConv2dSampleGradientsKernel<BFloat16,8>",
    }
    for name, kernel in counted.items():
        assert cost.INSTRUCTIONS[name] == table[kernel, "90"]["instructions"]
    samples = table["DeformConv2dGradSamplesKernel<BFloat16>", "90"]["instructions"]
    assert samples == sum(n for name, n in cost.INSTRUCTIONS.items() if "four slabs" in name)
    kernel = table["DeformConv2dGradKernelPartsKernel<BFloat16>", "90"]["instructions"]
    assert cost.INSTRUCTIONS["gradient of the kernel, 128 features"] == kernel + 36
