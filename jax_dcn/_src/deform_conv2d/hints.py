# SPDX-License-Identifier: MIT
"""Hints in errors: how to rewrite arrays and names that come from other libraries."""

from collections.abc import Sequence

import jax

from jax_dcn._src.sampling.window import Size

# Names in other libraries, and the names here: arguments of functions, and options of layers.
ARGUMENTS = {
    "input": "x",
    "stride": "strides",
    "dilation": "kernel_dilation",
    "groups": "feature_group_count",
    "weight": "kernel",
    "pad": "padding",
}
# Names of arguments that have no counterpart, and why.
_GROUPS = "the axis G of offset says how many groups there are"
ABSENT = {
    "deform_groups": _GROUPS,
    "deformable_groups": _GROUPS,
    "offset_groups": _GROUPS,
    "im2col_step": "the whole batch is computed at once",
}
OPTIONS = ARGUMENTS | {
    "in_channels": "in_features",
    "out_channels": "out_features",
    "deform_groups": "offset_groups",
    "deformable_groups": "offset_groups",
    "bias": "use_bias",
}


def kernel_hint(x: jax.Array, kernel: jax.Array, offset: jax.Array, feature_groups: int) -> str:
    """A sentence for a kernel that does not fit `x`; empty where the reason is unknown."""
    channels, shape = x.shape[-1], kernel.shape
    fits_transposed = shape[1] * feature_groups == channels and shape[0] % feature_groups == 0
    if fits_transposed and offset.shape[-2:-1] != (shape[0] * shape[1],):
        return (
            " The kernel looks like [O, C // groups, kh, kw]: write kernel.transpose(2, 3, 1, 0)."
        )
    if shape[2] * feature_groups == x.shape[-3]:
        return " x looks like [..., C, H, W]: write jnp.moveaxis(x, -3, -1)."
    return ""


def offset_hint(name: str, array: jax.Array, size: Size, axes: Sequence[int]) -> str:
    """A sentence for an offset or a mask whose last `axes` are one axis of channels.

    Args:
      name: The argument, `"offset"` or `"mask"`.
      array: Its value.
      size: Output positions, `(height, width)`.
      axes: Sizes of the last axes, `(taps, 2)` or `(taps,)`.
    """
    step = axes[0] * (axes[1] if len(axes) > 1 else 1)
    if array.ndim < 3:
        return ""
    *_, first, second, third = array.shape
    split = f".reshape(*{{}}, -1, {', '.join(map(str, axes))})"
    if (first, second) == tuple(size) and third % step == 0:
        written = f"{name}{split.format(f'{name}.shape[:-1]')}"
    elif (second, third) == tuple(size) and first % step == 0:
        moved = f"jnp.moveaxis({name}, -3, -1)"
        written = f"{moved}{split.format(f'{moved}.shape[:-1]')}"
    else:
        return ""
    return f" The channels of {name} look like all groups and taps in one axis: write {written}."
