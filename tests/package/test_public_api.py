# SPDX-License-Identifier: MIT
"""The public interface is frozen: a change here is a change for users, and belongs in the changelog."""

import importlib
import inspect

import pytest

PUBLIC = {
    "jax_dcn": [
        "available_implementations",
        "dcnv3",
        "dcnv4",
        "deform_aggregate",
        "deform_conv2d",
        "deform_roi_align",
        "deform_roi_pool",
        "grid_sample",
        "ms_deform_attn",
        "offset_from_positions",
        "sampling_positions",
        "show_config",
    ],
    "jax_dcn.interop.onnx": ["deform_conv", "evaluate", "to_onnx"],
    "jax_dcn.interop.torchvision": ["deform_conv2d"],
}
PARAMETERS = {
    "jax_dcn.deform_conv2d": "x kernel offset mask bias * strides padding kernel_dilation "
    "feature_group_count boundary precision implementation",
    "jax_dcn.sampling_positions": "offset * kernel_size strides padding kernel_dilation image_size",
    "jax_dcn.offset_from_positions": "positions * kernel_size strides padding kernel_dilation "
    "image_size",
    "jax_dcn.deform_aggregate": "x positions weights * shapes points boundary implementation",
    "jax_dcn.ms_deform_attn": "value locations weights * spatial_shapes points method "
    "implementation",
    "jax_dcn.dcnv3": "x offset mask * kernel_size strides padding kernel_dilation offset_scale "
    "remove_center implementation",
    "jax_dcn.dcnv4": "x offset_mask * groups kernel_size strides padding kernel_dilation offset_scale "
    "remove_center softmax implementation",
    "jax_dcn.grid_sample": "x grid * mode padding_mode align_corners implementation",
    "jax_dcn.deform_roi_pool": "x rois offset mask * spatial_scale pooled_size output_dim group_size "
    "part_size samples_per_part trans_std implementation",
    "jax_dcn.deform_roi_align": "x rois offset mask * spatial_scale pooled_size sampling_ratio gamma aligned "
    "implementation",
    "jax_dcn.nnx.DeformConv": "in_features out_features kernel_size strides * padding "
    "kernel_dilation feature_group_count offset_groups modulated mask_scale use_bias boundary "
    "offset_branch guide_features offset_dtype dtype param_dtype precision kernel_init bias_init implementation rngs",
    "jax_dcn.nnx.MSDeformAttn": "features * heads levels points value_projection output_projection "
    "offset_scale method dtype param_dtype implementation rngs",
    "jax_dcn.nnx.DCNv3": "features * groups kernel_size kernel_dilation dw_kernel_size offset_scale act "
    "norm center_feature_scale remove_center dtype param_dtype implementation rngs",
    "jax_dcn.nnx.DCNv4": "features * groups kernel_size kernel_dilation dw_kernel_size offset_scale "
    "center_feature_scale remove_center output_bias without_pointwise softmax dtype param_dtype "
    "implementation rngs",
    "jax_dcn.interop.torchvision.deform_conv2d": "input offset weight bias stride padding dilation "
    "mask",
    "jax_dcn.interop.onnx.deform_conv": "X W offset B mask * dilations group kernel_shape "
    "offset_group pads strides",
    "jax_dcn.interop.onnx.evaluate": "node inputs",
}


def functions(module: str) -> list[str]:
    found = vars(importlib.import_module(module)).items()
    return sorted(
        name
        for name, value in found
        if inspect.isfunction(value)
        and value.__module__ == module  # the module that users import the function from
        and not name.startswith("_")
    )


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_those_of_the_contract(module):
    assert functions(module) == PUBLIC[module]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_keep_their_names_and_order(name):
    module, attribute = name.rsplit(".", 1)
    public = getattr(importlib.import_module(module), attribute)
    function = public.__init__ if inspect.isclass(public) else public
    listed: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in listed:
            listed.append("*")
        listed.append(parameter.name)
    assert listed == PARAMETERS[name].split()


def test_every_public_function_is_documented():
    for module, names in PUBLIC.items():
        for name in names:
            function = getattr(importlib.import_module(module), name)
            sections = ("Args:", "Returns:", "Raises:")
            wanted = sections if inspect.signature(function).parameters else ()
            missing = [section for section in wanted if section not in inspect.getdoc(function)]
            assert not missing, (name, missing)
