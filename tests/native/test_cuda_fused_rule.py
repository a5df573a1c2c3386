# SPDX-License-Identifier: MIT
"""When the fused CUDA kernels are chosen."""

import ctypes
import itertools
import os
import shutil
import types

import jax
import jax.numpy as jnp
import pytest

from jax_dcn._src.deform_conv2d import cost, fused
from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn._src.operator import gpus
from tests.native.cuda_host import build


def arrays(dtype="bfloat16", channels=256, features=256, feature_groups=1, offset_groups=1):
    """Types of x, kernel and offset, and the geometry."""
    x = jax.ShapeDtypeStruct((32, 14, 13, channels), jnp.dtype(dtype))
    kernel = jax.ShapeDtypeStruct((3, 3, channels // feature_groups, features), x.dtype)
    offset = jax.ShapeDtypeStruct((32, 14, 13, offset_groups, 9, 2), jnp.float32)
    geometry = conv_geometry((14, 13), (3, 3), feature_group_count=feature_groups)
    return x, kernel, offset, geometry


def why_not(x, kernel, offset, geometry, precision):
    return fused.why_not(x, kernel, offset, geometry=geometry, precision=precision)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_layers_of_common_networks_are_fused(dtype):
    for channels in (64, 128, 256, 512):
        assert why_not(*arrays(dtype, channels, channels), None) is None
    assert why_not(*arrays(dtype, feature_groups=2, offset_groups=4), None) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(dtype="float64"), "float64"),
        (dict(channels=48), "channels of a group"),
        (dict(feature_groups=32), "channels of a group"),
        (dict(offset_groups=32), "channels of a group"),
        (dict(features=18), "features of a group"),
        (dict(features=68), "features of a group"),
    ],
)
def test_other_layers_are_not_fused(options, reason):
    assert reason in why_not(*arrays(**options), None)


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST, "F32_F32_F32"])
def test_float32_is_fused_only_where_tf32_will_do(precision):
    assert "TF32" in why_not(*arrays("float32"), precision)
    assert why_not(*arrays("bfloat16"), precision) is None
    for enough in (None, "default", "tensorfloat32", (jax.lax.Precision.HIGH,) * 2):
        assert why_not(*arrays("float32"), enough) is None


@pytest.mark.parametrize("capability", cost.GPUS)
def test_gradient_of_the_kernel_is_split_into_nearly_whole_waves(monkeypatch, capability):
    gpu = cost.GPUS[capability]
    monkeypatch.setattr(cost, "gpu_here", lambda: gpu)
    at_once = gpu.processors * gpu.resident
    for channels in (64, 128, 256, 512):
        x, kernel, offset, _ = arrays(channels=channels, features=channels)
        parts = fused.parts_of_grad_kernel(x, kernel, offset)
        blocks = parts * 9 * channels // 64 * -(-channels // 128)
        assert blocks / (at_once * -(-blocks // at_once)) > 0.85
        assert parts * kernel.size * 4 <= 40e6
        assert 32 * 14 * 13 / parts > 90  # pixels of a block


def test_gpus_of_one_compute_capability_split_the_gradient_of_the_kernel_alike(monkeypatch):
    x, kernel, offset, _ = arrays(channels=128, features=128)
    parts = []
    for name, capability, processors in (
        ("H100 SXM", "9.0", 132),
        ("H100 PCIe", "9.0", 114),
        ("RTX 4090", "8.9", 128),
    ):
        device = types.SimpleNamespace(
            device_kind=name, compute_capability=capability, core_count=processors
        )
        monkeypatch.setattr(gpus, "devices", lambda device=device: [device])
        parts.append(fused.parts_of_grad_kernel(x, kernel, offset))
    assert parts[0] == parts[1] != parts[2]


def test_gradient_of_the_kernel_has_parts_for_every_size():
    for pixels in (0, 1, 7):
        x, kernel, offset, _ = arrays()
        offset = jax.ShapeDtypeStruct((1, 1, pixels, *offset.shape[3:]), offset.dtype)
        assert fused.parts_of_grad_kernel(x, kernel, offset) == 1
    x, kernel, offset, _ = arrays(channels=2048, features=2048)
    assert fused.parts_of_grad_kernel(x, kernel, offset) == 1  # several would take much memory


# A library that asks the predicate of the kernels.
ASK = """
#include "cuda/deform_conv2d/fused.h"
extern "C" __attribute__((visibility("default"))) const char* ask(
    int element_bytes, int64_t batch, int64_t channels, int64_t features, int64_t feature_groups,
    int64_t offset_groups) {
  jax_dcn::DeformConv2dProblem p = {};
  p.batch = batch, p.height = p.out_height = 14, p.width = p.out_width = 13;
  p.channels = channels, p.features = features, p.offset_groups = offset_groups;
  p.kernel_height = p.kernel_width = 3;
  p.geometry.feature_groups = feature_groups;
  return jax_dcn::WhyNotFused(p, element_bytes);
}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("fused_rule")
    (folder / "ask.cu").write_text(ASK)
    build.build(folder / "ask.so", [folder / "ask.cu"])
    function = ctypes.CDLL(str(folder / "ask.so")).ask
    function.restype = ctypes.c_char_p
    return lambda *sizes: function(*map(ctypes.c_int64, sizes))


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler"
)
def test_kernels_take_what_python_chooses_them_for(ask):
    chosen = refused = 0
    for dtype, channels, features, feature_groups, offset_groups in itertools.product(
        ("bfloat16", "float32", "float64"), (32, 48, 64, 96, 192), (64, 66, 136), (1, 2), (1, 2, 3)
    ):
        if channels % feature_groups or channels % offset_groups or features % feature_groups:
            continue
        layer = arrays(dtype, channels, features, feature_groups, offset_groups)
        python = why_not(*layer, None)
        kernels = ask(
            jnp.dtype(dtype).itemsize, 32, channels, features, feature_groups, offset_groups
        )
        assert python is not None or kernels is None, (layer, kernels)
        chosen += python is None
        refused += kernels is not None
    assert chosen > 10 and refused > 10
