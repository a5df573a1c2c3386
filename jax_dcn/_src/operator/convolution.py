# SPDX-License-Identifier: MIT
"""Ordinary convolutions of layers, in the forms that XLA computes fast and right."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.merging import whole

# Whether XLA runs the program: other programs get `jax.lax.conv_general_dilated`. The context is part
# of the key of `jax.jit`, so that no program is traced under one value and used under the other.
runs_on_xla = jax.make_user_context(True)


def depthwise_convolution(
    x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with stride 1 and padding "SAME", for a layer of Flax.

    XLA's own takes 20 to 50 times as long on CPU. And on a mesh with an axis that does not split the
    batch, XLA multiplies the gradient of the kernel by the size of this axis (JAX 0.10.2 and 0.12.0.1).

    Args:
      x: Images `[N, H, W, C]`.
      kernel: A filter for each channel, `[Kh, Kw, 1, C]`.
      arguments: What `conv_general_dilated` takes, too, for programs that XLA does not run.
      options: Likewise.

    Returns:
      `[N, H, W, C]`, in the dtype of `x`.
    """
    if not runs_on_xla.value:
        return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)
    # Without checkpoint, every shifted copy of the images would be kept for the gradient.
    return jax.checkpoint(_sum_of_shifted, prevent_cse=False)(x, kernel)


def _sum_of_shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The sum over the taps of images `[N, H, W, C]`, shifted and scaled by `[Kh, Kw, 1, C]`."""
    rows, columns = kernel.shape[:2]
    pads = [(0, 0), *(((size - 1) // 2, size // 2) for size in (rows, columns)), (0, 0)]
    # On a mesh with explicit axes, JAX pads no axis that is split.
    padded = jnp.pad(whole(x, 1, 2).astype(sum_dtype(x)), pads)

    def term(row: int, column: int) -> jax.Array:
        lines = jax.lax.slice_in_dim(padded, row, row + x.shape[1], axis=1)
        shifted = jax.lax.slice_in_dim(lines, column, column + x.shape[2], axis=2)
        return shifted * kernel[row, column, 0].astype(shifted.dtype)[None, None, None]

    terms = [term(row, column) for row in range(rows) for column in range(columns)]
    return sum(terms[1:], terms[0]).astype(x.dtype)
