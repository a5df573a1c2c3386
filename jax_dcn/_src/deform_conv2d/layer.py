# SPDX-License-Identifier: MIT
"""What the deformable convolutions of every neural network library have in common."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.deform_conv2d.geometry import Padding, conv_geometry
from jax_dcn._src.sampling.positions import sampling_positions


class DeformConvOptions(Protocol):
    """The options of a layer, which every `DeformConv` has as attributes of these names."""

    kernel_size: int | Sequence[int]
    strides: int | Sequence[int]
    padding: Padding
    kernel_dilation: int | Sequence[int]
    feature_group_count: int
    offset_groups: int
    modulated: bool
    mask_scale: float
    boundary: str
    precision: Any
    implementation: str | Sequence[str] | None


def kernel_size(layer: DeformConvOptions) -> tuple[int, int]:
    """Taps `(height, width)`."""
    size = layer.kernel_size
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def offset_features(layer: DeformConvOptions) -> int:
    """Number of channels of the offset branch."""
    height, width = kernel_size(layer)
    return layer.offset_groups * height * width * (3 if layer.modulated else 2)


def offset_convolution(
    x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, quicker on CPU for the offset branch's 18 or 27 channels."""
    # XLA's CPU convolution takes a path two to three times slower unless there are a multiple of 8.
    features = kernel.shape[-1]
    kernel = jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, -features % 8)])
    return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)[..., :features]


def offset_and_mask(
    layer: DeformConvOptions, predicted: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Splits the offset branch's output into offset `[..., Ho, Wo, G, K, 2]` and mask."""
    height, width = kernel_size(layer)
    samples = layer.offset_groups * height * width
    shape = (*predicted.shape[:-1], layer.offset_groups, height * width)
    # Offsets of all groups come first, (dy, dx) interleaved, then all masks: the channel order
    # of published checkpoints.
    offset = predicted[..., : 2 * samples].reshape(*shape, 2)
    if not layer.modulated:
        return offset, None
    logits = predicted[..., 2 * samples :].reshape(shape)
    return offset, layer.mask_scale * jax.nn.sigmoid(logits)


def convolve(
    layer: DeformConvOptions,
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """`jax_dcn.deform_conv2d` with the options of `layer`."""
    return deform_conv2d(
        x,
        kernel,
        offset,
        mask,
        bias,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        boundary=layer.boundary,
        precision=layer.precision,
        implementation=layer.implementation,
    )


def positions(layer: DeformConvOptions, x: jax.Array, offset: jax.Array) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[..., Ho, Wo, G, K, 2]`."""
    size = kernel_size(layer)
    geometry = conv_geometry(
        x.shape[-3:-1],
        size,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
    )
    # Whole pixels of a large image are not exact in bfloat16.
    wide = offset if offset.dtype == jnp.float64 else offset.astype(jnp.float32)
    return sampling_positions(wide, size, geometry)


def is_offset_branch(parameters: Any) -> Any:
    """Says of every parameter whether it belongs to an offset branch, which papers train slower.

    Args:
      parameters: Any tree of parameters: `nnx.state(model, nnx.Param)`, Linen's
        `variables["params"]`, or gradients of either.

    Returns:
      A tree of the same structure of `True` (below a node called `offset_conv`) and `False`.

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
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "offset_conv" in _names(path), parameters
    )


def _names(path: tuple[Any, ...]) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")
