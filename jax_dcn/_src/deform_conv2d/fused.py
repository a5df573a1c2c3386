# SPDX-License-Identifier: MIT
"""Deformable convolution by the fused CUDA kernels: the gradients, and what the kernels can compute.

The fused kernels sample columns into shared memory and multiply them there: columns are not held in
device memory. Only the gradient of x takes the columns' gradient in memory. The forward call is
`native.deform_conv2d`. The tangent has no fused kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax

from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.deform_conv2d.cuda import Backward, backward
from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.native import attributes, precisions

_DTYPES = ("bfloat16", "float16", "float32")
_STEP_BYTES = 64  # of channels, sampled at a time
_LOAD_BYTES = 16
_LEAST_FEATURES = 64  # half of the features of a tile; not measured
_GROUPS = 2**16  # a grid has fewer blocks than this along its second and third axes

# The gradient of the kernel. A tile is as large as in cuda/deform_conv2d/grad_kernel.cu. Writing and
# summing one part of a tile takes as long as _PIXELS_OF_A_PART of its pixels, by bytes and instructions.
_TILE_ROWS, _TILE_FEATURES = 64, 128
_PIXELS_OF_A_PART = 90
_PARTS_BYTES = 40 * 10**6  # of all parts, at most
_MOST_PARTS = 1000


def refuses(*operands: jax.Array, precision: jax.lax.PrecisionLike, **params: Any) -> str | None:
    """Why columns in memory run in place of the fused kernels; `None` where the fused kernels run."""
    reason = why_not(*operands, precision=precision, **params)
    return reason or cost.why_not_fused(*operands, **params)


def why_not(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    *_: Any,
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
    **__: Any,
) -> str | None:
    """Why the fused kernels cannot run well; `None` where they can.

    `WhyNotFused` in cuda/deform_conv2d/fused.h refuses problems that the kernels cannot compute. This
    rule also refuses problems that they would compute slowly, or not precisely enough.
    """
    groups, size = geometry.feature_group_count, x.dtype.itemsize
    channels, features = x.shape[-1], kernel.shape[-1] // groups
    if x.dtype.name not in _DTYPES:
        return f"tensor cores do not multiply {x.dtype.name}"
    # By default, XLA too multiplies float32 in TF32.
    if x.dtype.name == "float32" and jax.lax.Precision.HIGHEST in precisions(precision):
        return "precision asks for more than TF32"
    if channels // groups * size % _STEP_BYTES or channels // offset.shape[3] * size % _STEP_BYTES:
        return f"the channels of a group are no multiple of {_STEP_BYTES} bytes"
    if features < _LEAST_FEATURES or features * size % _LOAD_BYTES:
        return f"the features of a group are few, or no multiple of {_LOAD_BYTES} bytes"
    pixels = math.prod(offset.shape[:3])
    corners = 4 * math.prod(offset.shape[:-1])
    sizes = (
        *(math.prod(x.shape[:3]), math.prod(x.shape[1:]), kernel.size * groups),
        *(pixels // 32 * kernel.shape[-1], corners),
    )
    if max(sizes) >= 2**31 or groups >= _GROUPS:
        return "the batch, an image, the kernel or the number of samples is too large"
    return None


def deform_conv2d_backward(
    *operands: jax.Array,
    wrt: Sequence[str],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands in `wrt`, each by the path that the cost model chooses."""
    return backward(MixedBackward, *operands, wrt=wrt, geometry=geometry, precision=precision)


class MixedBackward:
    """The cotangents of the primals in `wrt`, some by the fused kernels and some through columns."""

    def __init__(
        self,
        primals: dict[str, jax.Array],
        wrt: tuple[str, ...],
        geometry: ConvGeometry,
        precision: jax.lax.PrecisionLike,
    ):
        paths = cost.paths(*primals.values(), wrt=wrt, geometry=geometry)
        fused = [name for name in wrt if paths[cost.part_of(name)] == "fused"]
        self.primals, self.geometry, self.fuses_kernel = primals, geometry, "kernel" in fused
        names = {
            FusedBackward: tuple(name for name in fused if name != "kernel"),
            Backward: tuple(name for name in wrt if name not in fused),
        }
        self.backwards = [
            of_path(primals, asked, geometry, precision)
            for of_path, asked in names.items()
            if asked
        ]

    def __call__(self, grad_y: jax.Array) -> dict[str, jax.Array]:
        """The cotangents by name."""
        grads = {}
        if self.fuses_kernel:
            x, kernel, offset, mask = self.primals.values()
            grads["kernel"] = grad_kernel(self.geometry, x, kernel, offset, mask, grad_y)
        for backward_of_path in self.backwards:
            grads |= backward_of_path(grad_y)
        return grads


class FusedBackward(Backward):
    """The cotangents of x, offset and mask, without a matrix product of XLA.

    The gradient of x is computed chunk by chunk, from the columns' gradient. Without the gradient of
    x there is one chunk.
    """

    def __init__(self, primals: dict[str, jax.Array], wrt: tuple[str, ...], *options: Any):
        super().__init__(primals, wrt, *options)
        if "x" not in wrt:
            self.chunks = self.chunks.whole()

    def __call__(self, grad_y: jax.Array) -> dict[str, jax.Array]:
        """The cotangents by name."""
        scratch = (self.chunks.columns,) if "x" in self.wrt else ()

        def step(sums, of_chunk):
            operands = (*self.primals.values(), *of_chunk, grad_y)
            return self.call("jax_dcn_deform_conv2d_samples_backward", sums, operands, *scratch)

        return self.over_chunks(step, ())


def grad_kernel(geometry: ConvGeometry, x, kernel, offset, mask, grad_y) -> jax.Array:
    """The cotangent of the kernel."""
    parts = (parts_of_grad_kernel(x, kernel, offset), *kernel.shape)
    results = jax.typeof(kernel), jax.typeof(kernel).update(shape=parts, dtype=offset.dtype)
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_grad_kernel", results)
    return call(x, kernel, offset, mask, grad_y, **attributes(geometry))[0]


def parts_of_grad_kernel(x: jax.Array, kernel: jax.Array, offset: jax.Array) -> int:
    """Parts that the pixels are split into, so that the last blocks keep the GPU as busy as the first.

    A block takes the pixels of a part. A wave is as many blocks as the GPU holds. The division depends on
    the problem and the compute capability, and so do the bits of the gradient. By the time below, one
    division for all compute capabilities would take 1.2 times as long on some of them, and 1.7 times as
    long where a GPU could run all parts in one wave.
    """
    gpu = cost.gpu_here()
    rows, features = math.prod(kernel.shape[:3]), kernel.shape[-1]
    tiles = -(-rows // _TILE_ROWS) * -(-features // _TILE_FEATURES)
    pixels = math.prod(offset.shape[:3])
    most = max(1, min(pixels // _PIXELS_OF_A_PART, _PARTS_BYTES // (4 * kernel.size)))

    def time(parts: int) -> float:
        waves = -(-tiles * parts // (gpu.processors * gpu.resident))
        return waves * (pixels / parts + _PIXELS_OF_A_PART)

    return min(range(1, min(most, _MOST_PARTS) + 1), key=time)
