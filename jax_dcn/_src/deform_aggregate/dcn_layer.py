# SPDX-License-Identifier: MIT
"""The parts of the layers DCNv3 and DCNv4 that Flax NNX and Flax Linen share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from jax_dcn._src import arguments
from jax_dcn._src.deform_aggregate.dcnv4 import packed_size, unpack
from jax_dcn._src.deform_aggregate.taps import odd_if_removed, positions, published_taps
from jax_dcn._src.operator.convolution import depthwise_convolution
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.public import public

# Names of options in the published layers, and their names here.
OPTIONS = {
    "channels": "features",
    "group": "groups",
    "dilation": "kernel_dilation",
    "act_layer": "act",
    "norm_layer": "norm",
}

# Options of the published layers that have no counterpart.
_SIZE = "the output has the size of the input, as in all published models"
ABSENT = {"stride": _SIZE, "strides": _SIZE, "pad": _SIZE, "padding": _SIZE}

# For each norm, its index in the published sequence of a norm and a change of axes.
NORMS = {"layer": 1, "batch": 0}

Size = int | Sequence[int]

F = TypeVar("F", bound=Callable[..., Any])


@public("jax_dcn.layers")
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, PyTorch's default; a function of a module, so that layers can be pickled."""
    return jax.nn.gelu(x, approximate=False)


class DCNOptions(Protocol):
    """The options of a layer, which every `DCNv3` and `DCNv4` has as attributes of these names."""

    features: int
    groups: int
    kernel_size: Size
    kernel_dilation: Size
    dw_kernel_size: Size | None
    offset_scale: float
    center_feature_scale: bool
    remove_center: bool
    dtype: Any
    param_dtype: Any
    implementation: Implementation


class DCNv3Options(DCNOptions, Protocol):
    """The options of a layer `DCNv3`."""

    norm: Any


class DCNv4Options(DCNOptions, Protocol):
    """The options of a layer `DCNv4`."""

    output_bias: bool
    without_pointwise: bool
    softmax: bool


def check_dcnv3_options(layer: DCNv3Options) -> None:
    """Raises `ValueError` for options that are wrong."""
    _check_options(layer)
    arguments.function("act", getattr(layer, "act"))  # noqa: B009
    arguments.choice("norm", layer.norm, tuple(NORMS))


def check_dcnv4_options(layer: DCNv4Options) -> None:
    """Raises `ValueError` for options that are wrong, or that have no effect beside the others."""
    _check_options(layer)
    for name in ("output_bias", "without_pointwise", "softmax"):
        arguments.flag(name, getattr(layer, name))
    if layer.without_pointwise and not layer.output_bias:
        raise ValueError("output_bias has no effect with without_pointwise=True: leave it out.")


def _check_options(layer: DCNOptions) -> None:
    for name in ("features", "groups"):
        arguments.positive(name, getattr(layer, name))
    if layer.features % layer.groups:
        raise ValueError(f"groups={layer.groups} must divide features={layer.features}.")
    kernel_size = arguments.positive_pair("kernel_size", layer.kernel_size)
    arguments.positive_pair("kernel_dilation", layer.kernel_dilation)
    if layer.dw_kernel_size is not None:
        arguments.positive_pair("dw_kernel_size", layer.dw_kernel_size)
    arguments.finite("offset_scale", layer.offset_scale)
    arguments.flag("center_feature_scale", layer.center_feature_scale)
    odd_if_removed(kernel_size, layer.remove_center)
    arguments.optional_dtype("dtype", layer.dtype)
    arguments.dtype("param_dtype", layer.param_dtype)
    implementation_names(layer.implementation)


def of_images(call: F) -> F:
    """Decorates the call of a layer, which the published code calls with pixels in one axis and a shape."""

    @functools.wraps(call)
    def checked(layer: Any, x: Any, *published: Any, **options: Any) -> Any:
        if published or "shape" in options:
            raise TypeError(
                "x must be images [..., H, W, features], without a shape: write "
                "x.reshape(N, H, W, features) for the published [N, H * W, features]."
            )
        return call(layer, x, **options)

    return checked  # type: ignore[return-value]


def check_call(layer: DCNOptions, x: Any) -> jax.Array:
    """The images `x` as an array; raises `ValueError` for images that do not fit the options."""
    x = arguments.array("x", x, f"[..., H, W, {layer.features}]")
    if x.ndim < 3 or x.shape[-1] != layer.features or 0 in x.shape[-3:-1]:
        raise ValueError(
            f"x must be [..., H, W, {layer.features}] with pixels, for features={layer.features}, got "
            f"shape {x.shape}.{_image_hint(layer, x)}"
        )
    return x


def _image_hint(layer: DCNOptions, x: jax.Array) -> str:
    """A sentence for an array of another layout; empty where the reason is unknown."""
    if x.ndim > 2 and x.shape[-3] == layer.features:
        return " x looks like [..., C, H, W]: write jnp.moveaxis(x, -3, -1)."
    if x.ndim == 2 and x.shape[-1] == layer.features:
        return f" Pixels need two axes: write x.reshape(H, W, {layer.features})."
    return ""


def tap_count(layer: DCNOptions) -> int:
    """Taps of a group."""
    size = arguments.positive_pair("kernel_size", layer.kernel_size)
    return math.prod(size) - layer.remove_center


def dcnv3_branches(layer: DCNOptions) -> dict[str, int]:
    """Output features of the dense layers that predict in a `DCNv3`, by their names."""
    samples = layer.groups * tap_count(layer)
    return {"offset": 2 * samples, "mask": samples}


def dcnv4_branch(layer: DCNOptions) -> int:
    """Output features of the dense layer `offset_mask` of a `DCNv4`."""
    return packed_size(layer.groups, tap_count(layer))


def depthwise_options(layer: DCNOptions) -> dict[str, Any]:
    """The options of the depthwise convolution before the prediction, as both Flaxes name them."""
    size = layer.kernel_size if layer.dw_kernel_size is None else layer.dw_kernel_size
    size = arguments.positive_pair("dw_kernel_size", size)

    def initial(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        # PyTorch's initial values of a convolution with one input channel in each group.
        bound = math.prod(size) ** -0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return dict(
        kernel_size=size,
        feature_group_count=layer.features,
        conv_general_dilated=depthwise_convolution,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        kernel_init=initial,
        bias_init=initial,
    )


def norm_options(layer: DCNv3Options) -> dict[str, Any]:
    """The options of the norm, as both Flaxes name them, with InternImage's and PyTorch's values."""
    dtypes = dict(dtype=layer.dtype, param_dtype=layer.param_dtype)
    if layer.norm == "batch":
        return dict(momentum=0.9, epsilon=1e-5, **dtypes)
    return dict(epsilon=1e-6, **dtypes)


def operator_options(layer: DCNOptions) -> dict[str, Any]:
    """The options of `jax_dcn.dcnv3`."""
    return _window(layer) | dict(implementation=layer.implementation)


def _window(layer: DCNOptions) -> dict[str, Any]:
    return dict(
        kernel_size=layer.kernel_size,
        kernel_dilation=layer.kernel_dilation,
        offset_scale=layer.offset_scale,
        remove_center=layer.remove_center,
    )


def offset_and_mask(
    layer: DCNOptions, offset: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Offsets `[..., H, W, G, K', 2]` and their weights `[..., H, W, G, K']`, which sum to one."""
    samples = (*logits.shape[:-1], layer.groups, tap_count(layer))
    return offset.reshape(*samples, 2), jax.nn.softmax(logits.reshape(samples))


def unpacked(layer: DCNv4Options, offset_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Offsets `[..., H, W, G, K', 2]` and their weights `[..., H, W, G, K']`."""
    offset, mask = unpack(offset_mask, layer.groups, tap_count(layer))
    return offset, jax.nn.softmax(mask) if layer.softmax else mask


def sampling_positions(layer: DCNOptions, x: jax.Array, offset: jax.Array) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[..., H, W, G, K', 2]`."""
    options = _window(layer) | dict(strides=1, padding="SAME")
    return positions(offset, published_taps(jnp.asarray(x).shape[-3:-1], **options))


def packed_options(layer: DCNv4Options) -> dict[str, Any]:
    """The options of `jax_dcn.dcnv4`."""
    return operator_options(layer) | dict(groups=layer.groups, softmax=layer.softmax)


def sown(
    layer: DCNOptions, x: jax.Array, offset: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """The arrays that a call sows, by name."""
    return dict(sampling_positions=sampling_positions(layer, x, offset), weights=mask)


def centre_logits(features: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """The logits `[..., G]` for `mixed`, by the published weight `[G, C]` and bias `[G]`."""
    contracted = (((features.ndim - 1,), (1,)), ((), ()))
    logits = jax.lax.dot_general(features, weight, contracted)
    return logits + jnp.expand_dims(bias, range(logits.ndim - 1))


def mixed(layer: DCNOptions, y: jax.Array, x: jax.Array, logits: jax.Array) -> jax.Array:
    """Mixes the sums `y` with the centre's own features `x`; `logits [..., G]` give the share of `x`."""
    share = jax.nn.sigmoid(logits)[..., None]
    by_group = (*share.shape[:-1], layer.features // layer.groups)
    y, x = y.reshape(by_group), x.reshape(by_group)
    return (y + (x - y) * share).reshape(*logits.shape[:-1], layer.features)
