# SPDX-License-Identifier: MIT
"""The operators: one line each."""

from collections.abc import Callable
from typing import Any

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.deform_roi_pool.function import deform_roi_align, deform_roi_pool

OPERATORS: dict[str, Callable[..., Any]] = {
    "deform_conv2d": deform_conv2d,
    "deform_roi_align": deform_roi_align,
    "deform_roi_pool": deform_roi_pool,
}
