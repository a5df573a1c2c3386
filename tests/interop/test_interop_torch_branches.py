# SPDX-License-Identifier: MIT
"""`to_flax` tells the branch of a deformable layer from a module of the same name."""

import jax
import numpy as np
import pytest
from flax import linen as nn, nnx

from jax_dcn import linen as dcn_linen, nnx as dcn_nnx
from jax_dcn.interop.torch_weights import convolution, to_flax, to_flax_and_report
from tests.interop.test_interop_torch_names import rngs, tensors

OFFSETS = {"offset_conv.weight": (18, 4, 3, 3), "offset_conv.bias": (18,)}
MASKS = {"modulator_conv.weight": (9, 4, 3, 3), "modulator_conv.bias": (9,)}


class Block(nnx.Module):
    """The modules of the block around torchvision's function, each of its own."""

    def __init__(self, name: str):
        self.offset_conv = nnx.Conv(4, 18, (3, 3), rngs=rngs())
        self.modulator_conv = nnx.Conv(4, 9, (3, 3), rngs=rngs())
        layer = dcn_nnx.DeformConv(4, 5, 3, offset_branch=False, use_bias=False, rngs=rngs())
        setattr(self, name, layer)


class LinenBlock(nn.Module):
    name_of_layer: str

    @nn.compact
    def __call__(self, x):
        offset = nn.Conv(18, (3, 3), name="offset_conv")(x).reshape(*x.shape[:-1], 1, 9, 2)
        mask = nn.Conv(9, (3, 3), name="modulator_conv")(x)[..., None, :]
        options = dict(offset_branch=False, use_bias=False, name=self.name_of_layer)
        return dcn_linen.DeformConv(5, 3, **options)(x, offset, mask)


def variables_of(style: str, name: str):
    if style == "linen":
        x = np.ones((1, 5, 6, 4), np.float32)
        return LinenBlock(name).init(jax.random.key(0), x)["params"]
    return nnx.state(Block(name)) if style == "nnx" else Block(name)


@pytest.mark.parametrize("name", ["deform", "regular_conv"])
@pytest.mark.parametrize("style", ["nnx", "model", "linen"])
def test_modules_with_the_names_of_a_branch_take_the_tensors_of_their_own_names(style, name):
    weights = tensors(OFFSETS | MASKS | {f"{name}.weight": (5, 4, 3, 3)})
    found = to_flax(weights, variables_of(style, name))
    for module in ("offset_conv", "modulator_conv", name):
        kernel = found[module]["kernel"]
        kernel = kernel if style == "linen" else kernel[...]
        np.testing.assert_array_equal(kernel, convolution(weights[f"{module}.weight"]))


def test_branches_of_different_sizes_are_named():
    masks = {"modulator_conv.weight": (9, 4, 1, 1), "modulator_conv.bias": (9,)}
    weights = tensors(OFFSETS | masks | {"weight": (5, 4, 3, 3)})
    layer = dcn_nnx.DeformConv(4, 5, 3, use_bias=False, mask_scale=2.0, rngs=rngs())
    with pytest.raises(ValueError, match=r"put together: .*offset_conv.*\(9, 4, 1, 1\)"):
        to_flax(weights, layer)


class Derived(dcn_nnx.DeformConv):
    """A layer with a branch, and modules that have the names of another dialect."""

    def __init__(self):
        super().__init__(4, 5, 3, use_bias=False, modulated=False, rngs=rngs())
        self.modulator_conv = nnx.Conv(4, 9, (3, 3), rngs=rngs())
        self.regular_conv = nnx.Conv(4, 5, (3, 3), use_bias=False, rngs=rngs())


def test_a_layer_does_not_take_the_tensors_of_modules_inside():
    shapes = {"weight": (5, 4, 3, 3), "regular_conv.weight": (5, 4, 3, 3)}
    weights = tensors(OFFSETS | MASKS | shapes)
    found, report = to_flax_and_report(weights, Derived())
    assert set(report.loaded_keys) == set(weights)
    np.testing.assert_array_equal(found["kernel"][...], convolution(weights["weight"]))


@pytest.mark.parametrize("style", ["nnx", "linen"])
def test_offsets_and_masks_of_separate_branches_train_slower(style):
    marks = dcn_nnx.is_offset_branch(variables_of(style, "deform"))
    assert all(jax.tree.leaves([marks["offset_conv"], marks["modulator_conv"]]))
    assert not any(jax.tree.leaves(marks["deform"]))


def test_the_items_of_a_linen_stack_train_slower():
    params = {name: {"kernel": np.ones(2)} for name in ("conv_offset_0", "conv_offset_12", "conv")}
    marks = dcn_linen.is_offset_branch(params)
    assert [marks[name]["kernel"] for name in params] == [True, True, False]
    with pytest.raises(ValueError, match="no parameter is in a module named 'conv_offset'"):
        dcn_linen.is_offset_branch(params, names=["conv_offset"])


# ---------------------------------------------------------------------------------------- advice


def refusal(weights: dict, model, **options) -> str:
    with pytest.raises(ValueError) as error:
        to_flax(weights, model, **options)
    return str(error.value)


def option(message: str, name: str):
    """The value of the option that a message says to give."""
    return eval(message.partition(f"{name}=")[2].partition("\n")[0].removesuffix("."))


def layer(**options) -> dcn_nnx.DeformConv:
    return dcn_nnx.DeformConv(4, 5, 3, use_bias=False, mask_scale=2.0, rngs=rngs(), **options)


PAIRS = [
    "offset_conv modulator_conv",
    "offset mask",
    "p_conv m_conv",
    "deform.conv_offset deform.conv_mask",
]


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("parent", ["", "net.1."])
def test_separate_branches_beside_the_layer_are_met_with_their_new_names(names, parent):
    offset, mask = (f"{parent}{name}" for name in names.split())
    shapes = {
        f"{offset}.weight": (18, 4, 3, 3),
        f"{offset}.bias": (18,),
        f"{parent}deform.weight": (5, 4, 3, 3),
    }
    weights = tensors(shapes | {f"{mask}.weight": (9, 4, 3, 3), f"{mask}.bias": (9,)})
    model = nnx.Dict(deform=layer())
    model = nnx.Dict(net=nnx.List([nnx.Dict(), model])) if parent else model
    message = refusal(weights, model)
    assert "docs/checkpoints.md says how to reorder" in message and "version 1" not in message
    found = to_flax(weights, model, rename=option(message, "rename"))
    bias = (found["net"][1] if parent else found)["deform"]["offset_conv"]["bias"][...]
    expected = np.concatenate([weights[f"{offset}.bias"], weights[f"{mask}.bias"]])
    np.testing.assert_array_equal(bias, expected)


@pytest.mark.parametrize("names", [["shift"], ["offset", "mask"]])
def test_one_table_renames_the_branches_of_all_layers(names):
    channels = [18, 9] if len(names) == 2 else [27]
    shapes = {"a.deform.weight": (5, 4, 3, 3), "b.deform.weight": (5, 4, 3, 3)}
    for name, count in zip(names, channels, strict=True):
        for block in "ab":
            shapes |= {f"{block}.{name}.weight": (count, 4, 3, 3), f"{block}.{name}.bias": (count,)}
    model, weights = (
        nnx.Dict(a=nnx.Dict(deform=layer()), b=nnx.Dict(deform=layer())),
        tensors(shapes),
    )
    rename = option(refusal(weights, model), "rename")
    _, report = to_flax_and_report(weights, model, rename=rename)
    assert len(report.loaded_keys) == len(shapes)


def test_masks_that_stand_elsewhere_are_no_sign_of_version_1():
    shapes = {f"deform.{name}": shape for name, shape in OFFSETS.items()}
    weights = tensors(MASKS | shapes | {"deform.weight": (5, 4, 3, 3)})
    message = refusal(weights, nnx.Dict(deform=layer()))
    assert "version 1" not in message
    assert option(message, "rename") == {r"^modulator_conv\.": "deform.modulator_conv."}


def test_branches_that_are_in_place_are_not_advised_to_be_renamed():
    shapes = {
        f"{block}.{name}": shape for block in "ab" for name, shape in (OFFSETS | MASKS).items()
    }
    model = nnx.Dict(a=layer())
    model["a"].mask_scale = 1.0
    message = refusal(tensors(shapes | {"a.weight": (5, 4, 3, 3)}), model)
    assert "mask_scale=2.0, not 1.0" in message and "rename" not in message


def test_a_branch_without_a_bias_is_completed_by_zeros():
    weights = tensors({"weight": (5, 4, 3, 3), "conv_offset.weight": (27, 4, 3, 3)})
    message = refusal(weights, layer())
    assert "leave=" not in message
    zeros = option(message, r"weights |")
    found = to_flax(weights | zeros, layer())["offset_conv"]
    assert found["kernel"][...].all() and not found["bias"][...].any()


def test_only_the_bias_that_is_not_there_is_completed():
    shapes = {"weight": (5, 4, 3, 3), **OFFSETS, "modulator_conv.weight": (9, 4, 3, 3)}
    zeros = option(refusal(tensors(shapes), layer()), r"weights |")
    assert set(zeros) == {"modulator_conv.bias"}
    to_flax(tensors(shapes) | zeros, layer())


def test_the_advice_to_leave_branches_keeps_those_in_the_file():
    branch = {"a.conv_offset.weight": (27, 4, 3, 3), "a.conv_offset.bias": (27,)}
    weights = tensors(branch | {"a.weight": (5, 4, 3, 3), "b.weight": (5, 4, 3, 3)})
    model = nnx.Dict(a=layer(), b=layer())
    leave = option(refusal(weights, model).partition(" to leave them")[0], "leave")
    found = to_flax(weights, model, leave=leave)
    assert found["a"]["offset_conv"]["kernel"][...].all()
    assert not found["b"]["offset_conv"]["kernel"][...].any()


def test_the_branch_of_the_nearest_name_is_pointed_out():
    branches = {f"{block}.shift.weight": (27, 4, 3, 3) for block in "abc"}
    biases = {f"{block}.shift.bias": (27,) for block in "abc"}
    weights = tensors(branches | biases | {"b.deform.weight": (5, 4, 3, 3)})
    message = refusal(weights, nnx.Dict(b=nnx.Dict(deform=layer())))
    assert option(message, "rename") == {r"^b\.shift\.": "b.deform.offset_conv."}
