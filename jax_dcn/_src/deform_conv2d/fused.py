# SPDX-License-Identifier: MIT
"""When the fused CUDA kernels compute a deformable convolution, rather than columns and XLA's products.

The kernels refuse what they cannot do (`WhyNotFused` in `cuda/deform_conv2d/fused.h`); the rule here
leaves out, besides, what they would not do well.
"""

import math

import jax

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry

_STEP_BYTES = 64  # of channels, that are sampled at a time
_LOAD_BYTES = 16
_LEAST_FEATURES = 64  # half of what a tile multiplies; not measured

# The gradient of the kernel: its tiles, as in cuda/deform_conv2d/grad_kernel.cu, the blocks that an
# H100 runs at once, two on each multiprocessor, and pixels that are worth a block.
_TILE_ROWS, _TILE_FEATURES = 64, 128
_BLOCKS = 264
_LEAST_PIXELS = 512


def why_not_fused(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> str | None:
    """Why columns are held in memory; `None` where the fused kernels run."""
    groups, size = geometry.feature_group_count, x.dtype.itemsize
    channels, features = x.shape[-1], kernel.shape[-1] // groups
    if x.dtype.name not in ("bfloat16", "float16", "float32"):
        return f"tensor cores do not multiply {x.dtype.name}"
    if x.dtype.name == "float32" and not _allows_tf32(precision):
        return "precision asks for more than TF32"
    if channels // groups * size % _STEP_BYTES or channels // offset.shape[3] * size % _STEP_BYTES:
        return f"the channels of a group are no multiple of {_STEP_BYTES} bytes"
    if features < _LEAST_FEATURES or features * size % _LOAD_BYTES:
        return f"the features of a group are few, or no multiple of {_LOAD_BYTES} bytes"
    pixels = math.prod(offset.shape[:3])
    corners = 4 * math.prod(offset.shape[:-1])
    sizes = (
        *(math.prod(x.shape[1:]), kernel.size * groups),
        *(pixels // 32 * kernel.shape[-1], corners),
    )
    if max(sizes) >= 2**31 or groups >= 2**16:
        return "an image, the kernel or the number of samples is too large"
    return None


def parts_of_grad_kernel(x: jax.Array, kernel: jax.Array, offset: jax.Array) -> int:
    """Parts that the pixels are split into, so that there is work for a large GPU: not measured."""
    rows, features = math.prod(kernel.shape[:3]), kernel.shape[-1]
    tiles = -(-rows // _TILE_ROWS) * -(-features // _TILE_FEATURES)
    pixels = math.prod(offset.shape[:3])
    return max(1, min(_BLOCKS // tiles, pixels // _LEAST_PIXELS))


def _allows_tf32(precision: jax.lax.PrecisionLike) -> bool:
    """Whether XLA's own products of float32 would run in TF32, as they do by default."""
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    operands = precision if isinstance(precision, tuple) else (precision,)
    try:
        return jax.lax.Precision.HIGHEST not in map(jax.lax.Precision, operands)
    except ValueError:  # an algorithm by name is left to XLA
        return False
