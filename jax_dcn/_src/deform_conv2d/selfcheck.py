# SPDX-License-Identifier: MIT
"""The problem of deformable convolution for the selfcheck of an installation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.operator.problem import KnownResult, Problem, draw, draw_mask

_STRIDES, _PADDING, _GROUPS = (2, 1), ((1, 2), (0, 1)), 2


def _arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    x, kernel, bias = draw(0, 2, 9, 7, 12), draw(1, 3, 2, 6, 10) / 6, draw(4, 10)
    # Offset and mask may be wider than the image, and are: rounded, they would sample elsewhere.
    offset, mask = draw(2, 2, 5, 7, 3, 6, 2), draw_mask(3, 2, 5, 7, 3, 6)
    return x.astype(dtype), kernel.astype(dtype), offset, mask, bias.astype(dtype)


def _arrays_without_offset() -> tuple[np.ndarray, ...]:
    x, kernel, offset, mask, bias = _arrays(np.dtype("float32"))
    return x, kernel, np.zeros_like(offset), np.ones_like(mask), bias


def _ordinary_convolution() -> np.ndarray:
    x, kernel, _, _, bias = _arrays(np.dtype("float32"))
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        _STRIDES,
        _PADDING,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=_GROUPS,
        precision="highest",
    )
    return np.asarray(y) + bias


CONV = Problem(
    functools.partial(
        deform_conv2d,
        strides=_STRIDES,
        padding=_PADDING,
        feature_group_count=_GROUPS,
        precision="highest",
    ),
    _arrays,
    KnownResult("zero offsets", _arrays_without_offset, _ordinary_convolution),
)
