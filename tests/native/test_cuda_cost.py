# SPDX-License-Identifier: MIT
"""The cost model that chooses between the fused CUDA kernels and columns in memory."""

import dataclasses
import types

import jax
import pytest

from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn._src.operator import chunks, gpus
from tests.native import compile_cuda

ALL = ("x", "kernel", "offset", "mask", "bias")
EACH = {"forward": (), "kernel": ("kernel",), "samples": ("offset", "mask")}  # part by part
BACKWARD = ("kernel", "samples")


def layer(batch=16, size=28, channels=256, features=None, dtype="bfloat16") -> dict:
    shapes = dict(
        x=(batch, size, size, channels),
        kernel=(3, 3, channels, features or channels),
        offset=(batch, size, size, 1, 9, 2),
    )
    arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    return arrays | dict(geometry=conv_geometry((size, size), (3, 3)))


def times(gpu: cost.Gpu, part: str, **options) -> dict[str, float]:
    """Of one part alone, by path."""
    of = dict(wrt=EACH[part], **layer(**options))
    return {path: cost.microseconds(gpu, paths={part: path}, **of) for path in cost.PATHS}


@pytest.fixture
def choose(monkeypatch):
    """Makes the model's choices for some GPU, whatever the environment says."""
    monkeypatch.delenv(cost.VARIABLE, raising=False)

    def paths(gpu: cost.Gpu, wrt=(), **options) -> dict[str, str]:
        monkeypatch.setattr(cost, "gpu_here", lambda: gpu)
        return cost.paths(**layer(**options), wrt=wrt)

    return paths


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
    found = times(cost.GPUS[90], "forward", **options)
    assert found["columns"] == pytest.approx(columns, rel=0.1)
    assert found["fused"] > columns


@pytest.mark.parametrize("capability", cost.GPUS)
def test_fused_kernels_run_where_tensor_cores_are_the_narrow_part(choose, capability):
    gpu = cost.GPUS[capability]
    narrow = "fused" if capability in (86, 89, 120) else "columns"
    # A100's tensor cores are in between: its backward pass multiplies columns in memory.
    assert choose(gpu) == {"forward": "fused" if capability == 80 else narrow}
    assert choose(gpu, wrt=ALL) == dict.fromkeys(BACKWARD, narrow)


def test_the_time_of_a_backward_pass_is_that_of_its_parts_but_for_shared_samples():
    gpu = cost.GPUS[80]
    alone = {part: times(gpu, part) for part in BACKWARD}
    of = dict(wrt=("kernel", "offset", "mask"), **layer())
    for kernel in cost.PATHS:
        for samples in cost.PATHS:
            both = cost.microseconds(gpu, paths=dict(kernel=kernel, samples=samples), **of)
            expected = alone["kernel"][kernel] + alone["samples"][samples]
            if kernel == samples == "columns":
                assert both < 0.95 * expected  # samples are read once
            else:
                assert both == pytest.approx(expected)


@pytest.mark.parametrize("mix", [("fused", "columns"), ("columns", "fused")])
def test_a_backward_pass_mixes_paths_where_measured_factors_say_so(choose, mix):
    slow = {part: 9.0 for part, path in zip(BACKWARD, mix, strict=True) if path == "columns"}
    quick = {part: 0.1 for part, path in zip(BACKWARD, mix, strict=True) if path == "fused"}
    gpu = dataclasses.replace(cost.GPUS[89], **slow, **quick)
    assert choose(gpu, wrt=ALL) == dict(zip(BACKWARD, mix, strict=True))
    of = layer()
    geometry, operands = of.pop("geometry"), tuple(of.values())
    assert cost.why_not_fused(*operands, wrt=ALL, geometry=geometry) is None
    # A gradient that is not wanted has no part in the choice.
    assert choose(gpu, wrt=("kernel", "bias")) == {"kernel": mix[0]}


def test_a_backward_pass_mixes_paths_where_tiles_are_half_full(choose):
    mixed = dict(kernel="columns", samples="fused")  # 64 of 256 features would be none
    assert choose(cost.GPUS[89], wrt=ALL, features=192) == mixed
    assert choose(cost.GPUS[89], wrt=ALL, features=256) == dict.fromkeys(BACKWARD, "fused")


def test_time_grows_with_what_there_is_to_do():
    gpu = cost.GPUS[90]
    for part in cost.PARTS:
        for path in cost.PATHS:
            of = lambda part=part, path=path, **options: times(gpu, part, **options)[path]
            assert of(batch=32) == pytest.approx(2 * of())
            assert of(dtype="float32") > 1.99 * of()
            assert of(features=512) > of() > 0
    columns = cost.microseconds(gpu, paths=dict(samples="fused"), wrt=("x",), **layer())
    assert columns > times(gpu, "samples")["fused"]  # those that the gradient of x is gathered from


@pytest.mark.parametrize("part", cost.PARTS)
def test_a_measured_factor_corrects_the_choice(choose, part):
    for factor, path in ((1.0, "fused"), (2.0, "columns")):
        gpu = dataclasses.replace(cost.GPUS[89], **{part: factor})
        assert choose(gpu, wrt=EACH[part], size=56) == {part: path}
    of = layer(size=56)
    geometry, operands = of.pop("geometry"), tuple(of.values())
    assert "RTX 4090" in cost.why_not_fused(*operands, wrt=EACH[part], geometry=geometry)


def test_the_environment_overrides_parts_or_all(choose, monkeypatch):
    gpu = cost.GPUS[90]
    for value, expected in (
        ("fused", ("fused", "fused")),
        ("kernel=fused", ("fused", "columns")),
        ("samples=fused,kernel=columns", ("columns", "fused")),
        ("forward=fused", ("columns", "columns")),
    ):
        monkeypatch.setenv(cost.VARIABLE, value)
        assert tuple(choose(gpu, wrt=ALL).values()) == expected
    for value in ("fast", "", "kernel", "kernel=fast", "mask=fused", "kernel=fused;samples=fused"):
        monkeypatch.setenv(cost.VARIABLE, value)
        with pytest.raises(ValueError, match="JAX_DCN_CUDA_PATH must be one of"):
            choose(gpu, wrt=ALL)


def test_chunks_have_the_size_that_fits_the_gpu(monkeypatch):
    monkeypatch.delenv(chunks.VARIABLE, raising=False)
    for capability, megabytes in (("8.0", 32), ("9.0", 40), ("12.0", 76)):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(gpus, "devices", lambda device=device: [device])
        assert chunks.chunk_bytes() == megabytes * 10**6
    monkeypatch.setenv(chunks.VARIABLE, "12345678")
    assert chunks.chunk_bytes() == 12345678
    monkeypatch.setenv(chunks.VARIABLE, "12 MB")
    with pytest.raises(ValueError, match="CHUNK_BYTES must be a number of bytes, got '12 MB'"):
        chunks.chunk_bytes()


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
