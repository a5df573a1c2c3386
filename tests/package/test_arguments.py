# SPDX-License-Identifier: MIT
"""Every argument of every public function and layer, given nonsense, is named by the error.

NumPy integers are taken wherever integers are.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import jax_dcn
from jax_dcn.interop import onnx, torch_weights, torchvision
from jax_dcn.linen import (
    DCNv3 as LinenDCNv3,
    DCNv4 as LinenDCNv4,
    DeformConv as LinenConv,
    DeformRoIPool as LinenPool,
    MSDeformAttn as LinenAttn,
)
from jax_dcn.nnx import DCNv3, DCNv4, DeformConv, DeformRoIPool, MSDeformAttn, is_offset_branch


class Unreadable:
    """An array that refuses to be read, as PyTorch's tensors with a gradient do."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("call detach() first")


BAD: dict[str, Any] = {
    "None": None,
    "string": "nonsense",
    "integers": np.arange(3),
    "rank": np.ones((1,) * 7, np.float32),
    "zero": 0,
    "minus one": -1,
    "object": object(),
    "unreadable": Unreadable(),
    "complex": np.ones((2, 3), np.complex64),
    "tuple": (1, 2, 3, 4, 5),
    "empty": (),
    "nan": float("nan"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A public function, arguments that fit, and nonsense that fits as well.

    Attributes:
      accepts: For an argument, the names in `BAD` of values that the function takes.
      hidden: Arguments that the table leaves out.
    """

    function: Callable
    good: dict[str, Any]
    accepts: dict[str, str] = dataclasses.field(default_factory=dict)
    hidden: str = ""

    def arguments(self) -> list[str]:
        parameters = inspect.signature(self.function).parameters.values()
        return [p.name for p in parameters if p.name not in self.hidden.split()]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


WINDOW = dict(strides=1, padding=0, kernel_dilation=1)
LAYER = dict(WINDOW, kernel_size=3, feature_group_count=1, offset_groups=1, mask_scale=1.0)
CONV_ACCEPTS = dict(
    mask="None",
    bias="None",
    strides="None",
    padding="zero",
    precision="None",
    implementation="None",
)
LAYER_ACCEPTS = CONV_ACCEPTS | dict(
    dtype="None", offset_dtype="None", guide_features="None", mask_scale="zero,minus one"
)
POOL = dict(spatial_scale=0.5, pooled_size=2)
POOL_ACCEPTS = dict(
    offset="None", mask="None", implementation="None", part_size="None", dtype="None"
)
ATTENTION = dict(features=12, heads=2, levels=3, points=(3, 2, 3))
ATTENTION_ACCEPTS = dict(dtype="None", implementation="None", offset_scale="zero,minus one")
DCN = dict(features=4, groups=2, kernel_size=3, kernel_dilation=1, dw_kernel_size=3)
DCN_ACCEPTS = ATTENTION_ACCEPTS | dict(dw_kernel_size="None")
ROIS = np.array([[0, 0, 0, 9, 9]], np.float32)
TORCH = dict(input=ones(1, 4, 5, 5), offset=ones(1, 2, 5, 5), weight=ones(6, 4, 1, 1))


def pool(name: str) -> Row:
    good = dict(x=ones(1, 5, 5, 4), rois=ROIS, offset=ones(1, 2, 2, 1, 2), mask=ones(1, 2, 2))
    if name == "deform_roi_pool":
        good |= dict(output_dim=4, trans_std=0.1, group_size=1, part_size=2, samples_per_part=2)
    else:
        good |= dict(gamma=0.1, sampling_ratio=2)
    scales = dict(trans_std="minus one", gamma="minus one")
    accepts = POOL_ACCEPTS | scales | dict(sampling_ratio="zero")
    if name == "deform_roi_pool":  # whose trans_std and part_size need an offset
        del accepts["offset"]
    return Row(getattr(jax_dcn, name), good | POOL, accepts)


ROWS = {
    "deform_conv2d": Row(
        jax_dcn.deform_conv2d,
        dict(
            WINDOW,
            x=ones(1, 5, 5, 4),
            kernel=ones(1, 1, 4, 6),
            offset=ones(1, 5, 5, 1, 1, 2),
            mask=ones(1, 5, 5, 1, 1),
            bias=ones(6),
            feature_group_count=1,
        ),
        CONV_ACCEPTS,
    ),
    "sampling_positions": Row(
        jax_dcn.sampling_positions,
        dict(WINDOW, offset=ones(5, 5, 1, 1, 2), kernel_size=1, image_size=(5, 5)),
        CONV_ACCEPTS,
    ),
    "offset_from_positions": Row(
        jax_dcn.offset_from_positions,
        dict(WINDOW, positions=ones(5, 5, 1, 1, 2), kernel_size=1, image_size=(5, 5)),
        CONV_ACCEPTS,
    ),
    "deform_aggregate": Row(
        jax_dcn.deform_aggregate,
        dict(
            x=ones(1, 6, 4),
            positions=ones(1, 3, 2, 4, 2),
            weights=ones(1, 3, 2, 4),
            shapes=((2, 3),),
            points=(4,),
        ),
        dict(weights="None", points="None", implementation="None"),
    ),
    "ms_deform_attn": Row(
        jax_dcn.ms_deform_attn,
        dict(
            value=ones(1, 6, 2, 4),
            locations=ones(1, 3, 2, 5, 2),
            weights=ones(1, 3, 2, 5),
            spatial_shapes=((2, 3),),
            points=(5,),
        ),
        dict(points="None", implementation="None"),
    ),
    "grid_sample": Row(
        jax_dcn.grid_sample,
        dict(x=ones(1, 5, 5, 4), grid=ones(1, 2, 3, 2)),
        dict(implementation="None"),
    ),
    "dcnv3": Row(
        jax_dcn.dcnv3,
        dict(
            WINDOW,
            x=ones(1, 5, 5, 4),
            offset=ones(1, 5, 5, 2, 1, 2),
            mask=ones(1, 5, 5, 2, 1),
            kernel_size=1,
            offset_scale=2.0,
        ),
        dict(padding="zero", offset_scale="zero,minus one", implementation="None"),
    ),
    "dcnv4": Row(
        jax_dcn.dcnv4,
        dict(WINDOW, x=ones(1, 5, 5, 4), offset_mask=ones(1, 5, 5, 8), groups=2, kernel_size=1),
        dict(padding="zero", offset_scale="zero,minus one", implementation="None"),
    ),
    "deform_roi_pool": pool("deform_roi_pool"),
    "deform_roi_align": pool("deform_roi_align"),
    "nnx.DeformConv": Row(
        DeformConv,
        dict(LAYER, in_features=4, out_features=6, rngs=nnx.Rngs(0)),
        LAYER_ACCEPTS,
    ),
    "linen.DeformConv": Row(
        LinenConv, dict(LAYER, features=6), LAYER_ACCEPTS, hidden="parent name"
    ),
    "nnx.MSDeformAttn": Row(MSDeformAttn, dict(ATTENTION, rngs=nnx.Rngs(0)), ATTENTION_ACCEPTS),
    "linen.MSDeformAttn": Row(LinenAttn, ATTENTION, ATTENTION_ACCEPTS, hidden="parent name"),
    "nnx.DCNv3": Row(DCNv3, dict(DCN, rngs=nnx.Rngs(0)), DCN_ACCEPTS),
    "linen.DCNv3": Row(LinenDCNv3, DCN, DCN_ACCEPTS, hidden="parent name"),
    "nnx.DCNv4": Row(DCNv4, dict(DCN, rngs=nnx.Rngs(0)), DCN_ACCEPTS),
    "linen.DCNv4": Row(LinenDCNv4, DCN, DCN_ACCEPTS, hidden="parent name"),
    "nnx.DeformRoIPool": Row(
        DeformRoIPool,
        dict(POOL, output_dim=4, hidden_features=3, rngs=nnx.Rngs(0)),
        POOL_ACCEPTS | dict(trans_std="minus one"),
    ),
    "linen.DeformRoIPool": Row(
        LinenPool,
        dict(POOL, output_dim=4, hidden_features=3),
        POOL_ACCEPTS | dict(trans_std="minus one"),
        hidden="parent name",
    ),
    "torchvision": Row(
        torchvision.deform_conv2d,
        dict(TORCH, bias=ones(6), mask=ones(1, 1, 5, 5), stride=1, padding=0, dilation=1),
        dict(bias="None", mask="None", padding="zero"),
    ),
    "onnx.deform_conv": Row(
        onnx.deform_conv,
        dict(
            X=ones(1, 4, 5, 5),
            W=ones(6, 4, 1, 1),
            offset=ones(1, 2, 5, 5),
            B=ones(6),
            mask=ones(1, 1, 5, 5),
            strides=[1, 1],
            pads=[0, 0, 0, 0],
            dilations=[1, 1],
            group=1,
            offset_group=1,
            kernel_shape=[1, 1],
        ),
        dict(
            B="None",
            mask="None",
            strides="None",
            pads="None",
            dilations="None",
            kernel_shape="None",
        ),
    ),
}
LIKE = {"params": {"conv": {"kernel": np.zeros((3, 3, 4, 6)), "bias": np.zeros(6)}}}
WEIGHTS = {"conv.weight": np.ones((6, 4, 3, 3)), "conv.bias": np.ones(6)}
ROWS |= {
    "is_offset_branch": Row(
        is_offset_branch,
        dict(parameters={"offset_conv": ones(2)}, names=["offset_conv"]),
        dict(names="None"),
        hidden="parameters",
    ),
    "to_flax": Row(
        torch_weights.to_flax,
        dict(weights=WEIGHTS, like=LIKE, prefix="", leave=(), strict=True),
        dict(rename="None", convert="None", leave="empty"),
        hidden="like prefix",
    ),
    "read_state_dict": Row(
        torch_weights.read_state_dict,
        dict(path="weights.safetensors", key=None),
        dict(key="None"),
    ),
    "to_onnx": Row(
        onnx.to_onnx,
        dict(function=jnp.tanh, inputs=[(2, 3)], path=None, opset=21),
        dict(path="None,string", inputs="integers,rank,tuple,complex"),
        hidden="options",
    ),
}
CALLS = [
    pytest.param(row, argument, id=f"{name}-{argument}")
    for name, row in ROWS.items()
    for argument in row.arguments()
]


@pytest.fixture(autouse=True)
def skip_without_exporter(request):
    """Skips the tests of `to_onnx` where jax2onnx, of the extra `onnx`, is not installed."""
    if "to_onnx" in request.node.name:
        pytest.importorskip("jax2onnx")


@pytest.fixture(autouse=True)
def in_folder_with_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    safetensors.numpy.save_file(WEIGHTS, "weights.safetensors")


def test_numbers_that_no_array_holds_are_named():
    with pytest.raises(ValueError, match=re.escape("x must be an array [..., H, W, C], got [118")):
        jax_dcn.deform_conv2d([2**70], ones(3, 3, 4, 5), ones(2, 6, 7, 1, 9, 2))


@pytest.mark.parametrize("row, argument", CALLS)
def test_nonsense_is_named(row, argument):
    accepted = row.accepts.get(argument, "").split(",")
    wrong = []
    for name, value in BAD.items():
        try:
            row.function(**(row.good | {argument: value}))
            if name not in accepted:
                wrong.append(f"{name} is taken")
        except (ValueError, TypeError, FileNotFoundError) as error:
            if not re.search(rf"\b{argument}\b", str(error)) or name in accepted:
                wrong.append(f"{name}: {type(error).__name__}: {str(error)[:90]}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:90]}")
    assert not wrong, "\n".join(wrong)


def is_integral(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@pytest.mark.parametrize("name", ROWS)
def test_numpy_integers_are_integers(name):
    row = ROWS[name]
    numbers = {k: np.int64(v) for k, v in row.good.items() if is_integral(v)}
    pairs = {
        k: np.array(v)
        for k, v in row.good.items()
        if isinstance(v, tuple | list) and all(map(is_integral, v))
    }
    row.function(**(row.good | numbers | pairs))
