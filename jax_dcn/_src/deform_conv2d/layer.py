# SPDX-License-Identifier: MIT
"""The parts of a deformable convolution layer that Flax NNX and Flax Linen share."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jax_dcn._src import arguments
from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.deform_conv2d.positions import sampling_positions
from jax_dcn._src.deform_conv2d.samples import shifted
from jax_dcn._src.operator.convolution import runs_on_xla
from jax_dcn._src.operator.dtypes import branch_dtype, sum_dtype
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.merging import gathered, whole
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import BOUNDARIES, Boundary
from jax_dcn._src.sampling.window import PADDINGS, Padding, reach, written_padding

LayerPadding = Padding
"""A padding of `deform_conv2d`, `"CIRCULAR"` or `"REFLECT"`."""

# How `jax.numpy.pad` calls the paddings of layers that `deform_conv2d` does not have.
_MODES: dict[Any, str] = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
LAYER_PADDINGS = (*PADDINGS, *_MODES)


class DeformConvOptions(Protocol):
    """The options of a layer, which every `DeformConv` has as attributes of these names."""

    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None
    padding: LayerPadding
    kernel_dilation: int | Sequence[int]
    feature_group_count: int
    offset_groups: int
    modulated: bool
    mask_scale: float
    use_bias: bool
    boundary: Boundary
    offset_branch: bool
    guide_features: int | None
    offset_dtype: Any
    dtype: Any
    param_dtype: Any
    precision: Any
    implementation: Implementation


def check_options(layer: DeformConvOptions) -> None:
    """Raises `ValueError` for options that are wrong, or that have no effect beside the others."""
    arguments.positive_pair("kernel_size", layer.kernel_size)
    arguments.positive_pair("strides", 1 if layer.strides is None else layer.strides)
    arguments.positive_pair("kernel_dilation", layer.kernel_dilation)
    written_padding(layer.padding, LAYER_PADDINGS)
    arguments.positive("feature_group_count", layer.feature_group_count)
    arguments.positive("offset_groups", layer.offset_groups)
    for name in ("modulated", "use_bias", "offset_branch"):
        arguments.flag(name, getattr(layer, name))
    arguments.finite("mask_scale", layer.mask_scale)
    arguments.choice("boundary", layer.boundary, BOUNDARIES)
    if layer.guide_features is not None:
        arguments.positive("guide_features", layer.guide_features)
    arguments.optional_dtype("dtype", layer.dtype)
    arguments.optional_dtype("offset_dtype", layer.offset_dtype)
    arguments.dtype("param_dtype", layer.param_dtype)
    arguments.precision(layer.precision)
    implementation_names(layer.implementation)
    _check_effects(layer)


def check_initialisers(kernel_init: Any, bias_init: Any) -> None:
    """Raises `ValueError` for initialisers that are no functions."""
    arguments.function("kernel_init", kernel_init)
    arguments.function("bias_init", bias_init)


def _check_effects(layer: DeformConvOptions) -> None:
    if not layer.offset_branch:
        for name, without in (("guide_features", None), ("offset_dtype", None), ("mask_scale", 1)):
            if getattr(layer, name) != without:
                raise ValueError(f"{name} has no effect with offset_branch=False: leave it out.")
    if not layer.modulated and layer.mask_scale != 1:
        raise ValueError("mask_scale has no effect with modulated=False: leave it out.")


def check_features(layer: DeformConvOptions, in_features: Any, out_features: Any) -> None:
    """Raises `ValueError` for numbers of channels that the groups do not divide."""
    channels = arguments.positive("in_features", in_features)
    features = arguments.positive("out_features", out_features)
    groups = layer.feature_group_count
    if channels % groups or features % groups:
        raise ValueError(
            f"feature_group_count={groups} must divide in_features={channels} and "
            f"out_features={features}."
        )
    if channels % layer.offset_groups:
        raise ValueError(f"offset_groups={layer.offset_groups} must divide in_features={channels}.")


def check_call(
    layer: DeformConvOptions,
    x: Any,
    offset: jax.Array | None = None,
    mask: jax.Array | None = None,
    guide: jax.Array | None = None,
) -> jax.Array:
    """`x` as an array; raises `ValueError` for arguments of a call that do not fit the options."""
    x = _images(layer, x)
    if layer.offset_branch:
        for name, value in (("offset", offset), ("mask", mask)):
            if value is not None:
                raise ValueError(f"{name} is predicted by the layer: pass offset_branch=False.")
        _check_guide(layer, x, guide)
        return x
    if offset is None:
        raise ValueError("offset is required with offset_branch=False.")
    if guide is not None:
        raise ValueError("guide has no effect with offset_branch=False.")
    if mask is not None and not layer.modulated:
        raise ValueError("mask is given, but the layer has modulated=False.")
    _check_offset_groups(layer, offset)
    return x


def _check_offset_groups(layer: DeformConvOptions, offset: Any) -> None:
    """Refuses offsets whose groups are not `offset_groups`; the default 1 takes any groups."""
    groups, expected = layer.offset_groups, "[..., Ho, Wo, G, K, 2]"
    shape = arguments.array("offset", offset, expected).shape
    if groups > 1 and shape[-3:-2] != (groups,):
        raise ValueError(
            f"offset must be {expected} with G=offset_groups={groups}, got shape {shape}."
        )


def _images(layer: DeformConvOptions, x: Any) -> jax.Array:
    # A layer of Flax NNX knows its channels.
    channels = getattr(layer, "in_features", None)
    axes = f"[..., H, W, {channels or 'C'}]"
    images = arguments.array("x", x, axes)
    if images.ndim < 3 or channels not in (None, images.shape[-1]):
        reason = f" for in_features={channels}" if channels else ""
        raise ValueError(f"x must be {axes}{reason}, got shape {images.shape}.")
    return images


def check_predicts(layer: DeformConvOptions) -> None:
    """Raises `ValueError` for a layer without a branch that predicts offsets."""
    if not layer.offset_branch:
        raise ValueError(
            "the layer has offset_branch=False and predicts nothing: see jax_dcn.sampling_positions."
        )


def _check_guide(layer: DeformConvOptions, x: jax.Array, guide: jax.Array | None) -> None:
    if guide is None:
        if layer.guide_features is not None:
            raise ValueError("guide is required in a layer with guide_features.")
        return
    guide = arguments.array("guide", guide, "[..., H, W, guide_features]")
    # A layer of Flax NNX knows its channels. A layer of Flax Linen learns them from the guide.
    channels = layer.guide_features or getattr(layer, "in_features", None)
    expected = (*x.shape[:-1], *((channels,) if channels else guide.shape[-1:]))
    if not fits(guide.shape, expected):
        raise ValueError(
            f"guide must have the size of x and the channels that guide_features gives: expected "
            f"{expected}, got {guide.shape}."
        )


def kernel_size(layer: DeformConvOptions) -> tuple[int, int]:
    """Taps `(height, width)`."""
    return arguments.positive_pair("kernel_size", layer.kernel_size)


def offset_features(layer: DeformConvOptions) -> int:
    """Number of channels of the offset branch."""
    height, width = kernel_size(layer)
    return layer.offset_groups * height * width * (3 if layer.modulated else 2)


def convolution_options(layer: DeformConvOptions) -> dict[str, Any]:
    """The options of the ordinary convolution that predicts offsets, as both Flaxes name them."""
    padding = written_padding(layer.padding, LAYER_PADDINGS)
    by_default = layer.offset_dtype is None
    return dict(
        strides=arguments.positive_pair("strides", 1 if layer.strides is None else layer.strides),
        padding="VALID" if padding in _MODES else padding,
        kernel_dilation=arguments.positive_pair("kernel_dilation", layer.kernel_dilation),
        dtype=branch_dtype(layer.param_dtype) if by_default else layer.offset_dtype,
        param_dtype=layer.param_dtype,
        precision=layer.precision,
        conv_general_dilated=offset_convolution,
    )


def branch_input(layer: DeformConvOptions, x: jax.Array) -> jax.Array:
    """Images or a guide as input of the offset branch: padded, and by default at least float32."""
    padded = _padded(layer, jnp.asarray(x))[0]
    return padded.astype(sum_dtype(padded)) if layer.offset_dtype is None else padded


def _padded(layer: DeformConvOptions, x: jax.Array) -> tuple[jax.Array, Any, tuple[int, int]]:
    """Applies a padding that `deform_conv2d` does not have.

    Returns:
      The images, the padding that is left to `deform_conv2d`, and the number of added rows above and
      columns to the left.
    """
    padding = written_padding(layer.padding, LAYER_PADDINGS)
    if padding not in _MODES:
        return x, padding, (0, 0)
    dilation = arguments.positive_pair("kernel_dilation", layer.kernel_dilation)
    pads = [((size - 1) // 2, size // 2) for size in reach(kernel_size(layer), dilation)]
    widths = [(0, 0)] * (x.ndim - 3) + pads + [(0, 0)]
    # On a mesh with explicit axes, JAX pads no axis that is split.
    images = whole(x, x.ndim - 3, x.ndim - 2)
    return jnp.pad(images, widths, mode=_MODES[padding]), "VALID", (pads[0][0], pads[1][0])


def offset_convolution(
    x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of an offset branch: faster on CPU, and right for split images."""
    if not runs_on_xla.value:
        return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)
    # On a mesh with explicit axes, JAX convolves no channels that are split.
    kernel, images = whole(kernel, 2, 3), whole(x, 3)
    # The deformable convolution reads whole images, too. Of split images, XLA multiplies the gradient
    # of the kernel by the size of an axis of the mesh that splits nothing (JAX 0.10.2).
    images = gathered(images, 1, 2)
    # XLA's CPU convolution is two to three times slower where the number of channels is no multiple
    # of 8.
    features = kernel.shape[-1]
    kernel = jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, -features % 8)])
    return jax.lax.conv_general_dilated(images, kernel, *arguments, **options)[..., :features]


def offset_and_mask(
    layer: DeformConvOptions, predicted: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Splits the offset branch's output into offset `[..., Ho, Wo, G, K, 2]` and mask."""
    height, width = kernel_size(layer)
    samples = layer.offset_groups * height * width
    shape = (*predicted.shape[:-1], layer.offset_groups, height * width)
    # Channels are ordered as in published checkpoints: first the offsets of all groups, (dy, dx)
    # interleaved, then the masks of all groups.
    offset = predicted[..., : 2 * samples].reshape(*shape, 2)
    if not layer.modulated:
        return offset, None
    logits = predicted[..., 2 * samples :].reshape(shape)
    return offset, float(layer.mask_scale) * jax.nn.sigmoid(logits)


def convolve(
    layer: DeformConvOptions,
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """`jax_dcn.deform_conv2d` with the options of `layer`."""
    padded, padding, _ = _padded(layer, x)
    return deform_conv2d(
        padded,
        kernel,
        offset,
        mask,
        bias,
        strides=layer.strides,
        padding=padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        boundary=layer.boundary,
        precision=layer.precision,
        implementation=layer.implementation,
    )


def positions(layer: DeformConvOptions, x: jax.Array, offset: jax.Array) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[..., Ho, Wo, G, K, 2]`."""
    padded, padding, pads = _padded(layer, jnp.asarray(x))
    found = sampling_positions(
        offset,
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        padding=padding,
        kernel_dilation=layer.kernel_dilation,
        image_size=padded.shape[-3:-1],
    )
    return shifted(found, (-pads[0], -pads[1]))


_OFFSET_BRANCHES = ("offset_conv", "conv_offset", "conv_offset_mask", "modulator_conv")

# Linen's names of the items of a stack `conv_offset`.
_ITEM = re.compile(r"conv_offset_\d+")


@public("jax_dcn.layers")
def is_offset_branch(parameters: Any, names: Sequence[str] | None = None) -> Any:
    """Marks the parameters of offset branches, which the papers train at a lower learning rate.

    Args:
      parameters: Any tree of parameters: `nnx.state(model, nnx.Param)`, Linen's
        `variables["params"]`, or gradients of either.
      names: Names of the modules that predict offsets. `None`: `offset_conv`, and the names of
        published networks, `conv_offset`, `conv_offset_mask` and `modulator_conv`, which predicts
        masks; `conv_offset_0` and the like too, the layers of a stack in Linen.

    Returns:
      A tree of the same structure: `True` for a parameter inside a module of these names, `False`
      for every other parameter.

    Raises:
      ValueError: if no parameter is inside such a module, or one of the given `names` is the name of
        no module; the message lists the names of the tree.

    Examples:
      A tenth of the learning rate, as in the papers, whatever the optimiser:

      >>> import optax
      >>> optimizer = optax.chain(
      ...     optax.sgd(0.1, momentum=0.9),
      ...     optax.masked(optax.scale(0.1), is_offset_branch),
      ... )

      Or an optimiser of its own, with the answers as labels:

      >>> optimizer = optax.multi_transform(
      ...     {False: optax.adamw(1e-3), True: optax.adamw(1e-4, weight_decay=0)}, is_offset_branch
      ... )

      Both run on any network:

      >>> import jax.numpy as jnp
      >>> parameters = {"kernel": jnp.ones(2), "offset_conv": {"kernel": jnp.ones(2)}}
      >>> is_offset_branch(parameters)
      {'kernel': False, 'offset_conv': {'kernel': True}}
      >>> state = optimizer.init(parameters)
      >>> updates, state = optimizer.update(parameters, state, parameters)

      Branches of other names:

      >>> import functools
      >>> mask = functools.partial(is_offset_branch, names=["shift"])
      >>> mask({"shift": jnp.ones(2), "kernel": jnp.ones(2)})
      {'kernel': False, 'shift': True}
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    found = {name for path, _ in leaves for name in _names(path)}
    known = [*_OFFSET_BRANCHES, *filter(_ITEM.fullmatch, found)]
    wanted = known if names is None else _as_names(names)
    absent = [name for name in wanted if name not in found]
    if leaves and (absent if names is not None else len(absent) == len(wanted)):
        raise ValueError(
            f"no parameter is in a module named {' or '.join(map(repr, absent))}: pass names= of "
            f"the modules that predict offsets. The names here are {sorted(found)}."
        )
    marks = [not set(wanted).isdisjoint(_names(path)) for path, _ in leaves]
    return jax.tree.unflatten(tree, marks)


def _as_names(names: Sequence[str]) -> list[str]:
    if listed := arguments.texts("names", names):
        return listed
    raise ValueError(f"names must be names of modules, got {names!r}.")


def _names(path: tuple[Any, ...]) -> list[str]:
    return re.split("[/.]", jax.tree_util.keystr(path, simple=True, separator="/"))
