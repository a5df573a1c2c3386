# SPDX-License-Identifier: MIT
"""`to_flax` reports what became of every parameter, and says how to mend what does not fit."""

import numpy as np
import pytest
from flax import nnx

from jax_dcn import nnx as dcn_nnx
from jax_dcn.interop.torch_weights import convolution, to_flax, to_flax_and_report
from tests.interop.test_interop_torch_names import rngs, tensors, zeros


def test_the_report_lists_what_became_of_every_parameter():
    weights = tensors({"a.bias": (3,), "b.bias": (3,), "x.y": (2,)})
    weights["bn.num_batches_tracked"] = np.array(7)
    _, report = to_flax_and_report(weights, zeros("a.bias", "c.bias", "d.0.bias"), strict=False)
    assert report.loaded_keys == ["a.bias"]
    assert report.missing_keys == ["c.bias", "d.0.bias"]
    assert report.unexpected_keys == ["b.bias", "x.y"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prefix", ["", "backbone.", "modul"])
def test_a_wrong_prefix_is_said_with_the_right_one(strict, prefix):
    weights = tensors({"module.backbone.a.bias": (3,), "module.head.a.x": (3,)})
    with pytest.raises(ValueError, match=r"names begin with `module\.backbone\.`"):
        to_flax(weights, zeros("a.bias", "b.bias"), strict=strict, prefix=prefix)


def test_a_prefix_that_finds_less_is_not_advised():
    own = {"norm.weight": (3,), "fc.weight": (2, 3), "fc.bias": (2,)}
    weights = tensors(own | {"aux.norm.weight": (3,), "aux.norm.bias": (3,)})
    linear = nnx.Linear(3, 2, rngs=rngs())
    model = nnx.Dict(norm=nnx.LayerNorm(3, rngs=rngs()), fc=linear)
    with pytest.raises(ValueError, match=r"1 missing:\n  norm\.bias") as error:
        to_flax(weights, model)
    assert "prefix" not in str(error.value)


def test_names_of_compiled_modules_are_met_with_the_remedy():
    weights = tensors({"backbone._orig_mod.c.bias": (3,), "fc.bias": (3,)})
    like = zeros("backbone.c.bias", "fc.bias")
    with pytest.raises(ValueError, match=r"Compiled modules add `_orig_mod\.`") as error:
        to_flax(weights, like)
    rename = str(error.value).partition("rename=")[2].removesuffix(".")
    assert to_flax(weights, like, rename=eval(rename))["backbone"]["c"]["bias"].all()


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_network_are_refused(strict):
    with pytest.raises(ValueError, match=r"1 missing:\n  a.bias\n1 unexpected:\n  other"):
        to_flax(tensors({"other": (3,)}), zeros("a.bias"), strict=strict)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_of_the_other_version_are_said_to_be(modulated, groups):
    layer = dcn_nnx.DeformConv(4, 5, 3, modulated=modulated, offset_groups=groups, rngs=rngs())
    count = groups * (18 if modulated else 27)
    weights = tensors(
        {
            "weight": (5, 4, 3, 3),
            "bias": (5,),
            "conv_offset.weight": (count, 4, 3, 3),
            "conv_offset.bias": (count,),
        }
    )
    version = 1 if modulated else 2
    with pytest.raises(ValueError, match=f"version {version} weights: `modulated={not modulated}`"):
        to_flax(weights, nnx.state(layer))


def test_another_number_of_offset_groups_is_said():
    layer = dcn_nnx.DeformConv(4, 5, 3, offset_groups=2, use_bias=False, rngs=rngs())
    shapes = {"weight": (5, 4, 3, 3), "conv_offset.weight": (27, 4, 3, 3)}
    weights = tensors(shapes | {"conv_offset.bias": (27,)})
    with pytest.raises(ValueError, match="27 channels for 54: is offset_groups the published"):
        to_flax(weights, layer)


def test_a_branch_of_another_name_is_pointed_out():
    layer = dcn_nnx.DeformConv(4, 5, 3, modulated=False, use_bias=False, rngs=rngs())
    shapes = {"dcn.weight": (5, 4, 3, 3), "shift.weight": (18, 4, 3, 3), "shift.bias": (18,)}
    weights, model = tensors(shapes), nnx.Dict(dcn=layer)
    with pytest.raises(ValueError, match=r"shift\.weight has the shape of an offset") as error:
        to_flax(weights, model)
    rename = str(error.value).partition("rename=")[2].removesuffix(".")
    assert rename == r'{r"^shift\.": "dcn.offset_conv."}'
    found = to_flax(weights, model, rename={r"^shift\.": "dcn.offset_conv."})
    bias = found["dcn"]["offset_conv"]["bias"][...]
    np.testing.assert_array_equal(bias, weights["shift.bias"])


# ------------------------------------------------------- options that shapes and names do not show


SEPARATE = {
    "weight": (5, 4, 3, 3),
    "offset_conv.weight": (18, 4, 3, 3),
    "offset_conv.bias": (18,),
    "modulator_conv.weight": (9, 4, 3, 3),
    "modulator_conv.bias": (9,),
}
POINTS = {
    "sampling_offsets.weight": (16, 4),
    "sampling_offsets.bias": (16,),
    "attention_weights.weight": (8, 4),
    "attention_weights.bias": (8,),
}


def test_a_mask_of_twice_the_sigmoid_is_said_where_the_layer_is_unknown():
    weights = tensors(SEPARATE)
    layer = dcn_nnx.DeformConv(4, 5, 3, use_bias=False, mask_scale=2.0, rngs=rngs())
    to_flax(weights, layer)
    with pytest.warns(UserWarning, match=r"mask_scale=2\.0, which only an NNX model shows"):
        to_flax(weights, nnx.state(layer))


def test_a_mask_of_one_sigmoid_in_two_branches_is_loaded_by_convert():
    weights = tensors(SEPARATE)
    layer = dcn_nnx.DeformConv(4, 5, 3, use_bias=False, rngs=rngs())
    with pytest.raises(ValueError, match=r"if yours is sigmoid\(logits\), say so with convert="):
        to_flax(weights, layer)
    convert = {r"offset_conv\.kernel$": convolution, r"offset_conv\.bias$": np.asarray}
    found = to_flax(weights, layer, convert=convert)["offset_conv"]["bias"][...]
    parts = [weights["offset_conv.bias"], weights["modulator_conv.bias"]]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_points_that_differ_are_said_where_the_layer_is_unknown():
    weights = tensors(POINTS) | {"n_points_scale": np.repeat([1 / 3, 1], [3, 1])}
    options = dict(heads=2, levels=2, value_projection=False, output_projection=False)
    layer = dcn_nnx.MSDeformAttn(4, points=(3, 1), **options, rngs=rngs())
    to_flax(weights, layer)
    with pytest.warns(UserWarning, match=r"says points=\(3, 1\), which only an NNX model shows"):
        to_flax(weights, nnx.state(layer))
    to_flax(weights | {"n_points_scale": np.full(4, 0.5)}, nnx.state(layer))  # equal: no warning


def test_only_offset_branches_have_versions():
    with pytest.raises(ValueError) as error:
        to_flax(tensors({"fc.bias": (27,)}), zeros("fc.bias", shape=(18,)))
    assert "version" not in str(error.value)


def test_weights_of_an_ordinary_network_are_met_with_the_remedy():
    layer = dcn_nnx.DeformConv(2, 3, 1, rngs=rngs())
    ordinary = tensors({"weight": (3, 2, 1, 1), "bias": (3,)})
    with pytest.raises(ValueError, match='ordinary convolutions: give leave="offset_conv"'):
        to_flax(ordinary, layer)
    to_flax(ordinary, layer, leave="offset_conv")
    with pytest.raises(ValueError) as error:
        to_flax({"weight": ordinary["weight"]}, layer)
    assert "ordinary" not in str(error.value)
