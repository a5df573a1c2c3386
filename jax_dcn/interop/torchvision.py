# SPDX-License-Identifier: MIT
"""`torchvision.ops.deform_conv2d`, with the same arguments in the same order, for JAX arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jax_dcn._src.deform_conv2d.function import deform_conv2d as _deform_conv2d


def deform_conv2d(
    input: jax.Array,
    offset: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: jax.Array | None = None,
) -> jax.Array:
    """Deformable convolution of channels-first arrays, as torchvision calls it.

    The number of groups follows from the channels of `weight`, that of offset groups from those of
    `offset`. Values are torchvision's. So are gradients, but for samples at exactly -1 in either
    coordinate: there the gradient of the offset is zero, as in the original and in mmcv, where
    torchvision takes the derivative on the right. Fresh layers have such samples, at the image's
    border.

    Args:
      input: Images, `[N, C, H, W]`.
      offset: Displacements in pixels, `[N, 2 * G * kh * kw, Ho, Wo]`; channels by group, then by tap
        in row-major order, then `(dy, dx)`.
      weight: `[O, C // groups, kh, kw]`.
      bias: `[O]`.
      stride, padding, dilation: One number, or `(height, width)`.
      mask: Modulation, `[N, G * kh * kw, Ho, Wo]`.

    Returns:
      `[N, O, Ho, Wo]`.

    Raises:
      ValueError: if shapes disagree. Once ranks and channels fit, messages are those of
        `jax_dcn.deform_conv2d` and speak of channels-last arrays.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_dcn.interop.torchvision import deform_conv2d
      >>> x, weight = jnp.ones((4, 3, 10, 10)), jnp.ones((5, 3, 3, 3))
      >>> offset = jnp.zeros((4, 2 * 3 * 3, 8, 8))
      >>> deform_conv2d(x, offset, weight).shape
      (4, 5, 8, 8)
    """
    arrays = {"input": input, "offset": offset, "weight": weight}
    arrays |= {} if mask is None else {"mask": mask}
    for name, array in arrays.items():
        if jnp.ndim(array) != 4:
            raise ValueError(f"{name} must have 4 axes, got shape {jnp.shape(array)}.")
    channels, taps = input.shape[1], weight.shape[2] * weight.shape[3]
    if not weight.shape[1] or channels % weight.shape[1]:
        raise ValueError(
            f"weight must be [O, C // groups, kh, kw] for an input of {channels} channels, "
            f"got shape {weight.shape}."
        )
    y = _deform_conv2d(
        jnp.moveaxis(input, 1, -1),
        jnp.transpose(weight, (2, 3, 1, 0)),
        _channels_to_taps("offset", offset, taps, (2,)),
        None if mask is None else _channels_to_taps("mask", mask, taps, ()),
        bias,
        strides=stride,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=channels // weight.shape[1],
    )
    return jnp.moveaxis(y, -1, 1)


def _channels_to_taps(
    name: str, array: jax.Array, taps: int, components: tuple[int, ...]
) -> jax.Array:
    """`[N, G * K * components, Ho, Wo]` to `[N, Ho, Wo, G, K, *components]`."""
    batch, channels, *output_size = array.shape
    step = taps * (components[0] if components else 1)
    if not channels or channels % step:
        raise ValueError(
            f"{name} must have a multiple of {step} channels for a kernel of {taps} taps, "
            f"got shape {array.shape}."
        )
    array = jnp.moveaxis(array, 1, -1)
    return array.reshape(batch, *output_size, channels // step, taps, *components)
