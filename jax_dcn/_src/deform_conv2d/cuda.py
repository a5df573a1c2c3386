# SPDX-License-Identifier: MIT
"""Deformable convolution on CUDA: kernels sample columns, and XLA multiplies columns with the kernel.

    y = columns · kernel + bias            columns [pixels, K, C] = m_k v_k

The backward pass computes the gradient of the columns, `grad_y · kernelᵀ`. From this gradient come
the gradients of x, offset and mask; the columns then take its place in memory, and their product
with `grad_y` is the gradient of the kernel. All of this is done chunk by chunk, so that columns stay
in the cache of the GPU, and memory does not grow with the batch.

The functions have the signatures of the functions in `jax_dcn.reference`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.columns import (
    Chunks,
    times_kernel,
    times_kernel_transposed,
    transposed_times,
)
from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.native import attributes
from jax_dcn._src.deform_conv2d.signature import SIGNATURE

_PRIMALS = SIGNATURE.operands[: SIGNATURE.primals]


def deform_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    bias: jax.Array,
    *,
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """The operator."""
    y = jnp.zeros((*offset.shape[:3], kernel.shape[-1]), offset.dtype)
    if x.size:
        chunks = Chunks.of(x, kernel, offset, geometry.feature_group_count, gathers=False)

        def y_of(start: jax.Array) -> jax.Array:
            columns = _columns(chunks, geometry, x, kernel, offset, mask, start)
            return times_kernel(columns, kernel, dtype=offset.dtype, precision=precision)

        y = chunks.map(y_of)
    return _plus_bias(y, bias).astype(x.dtype)


def deform_conv2d_jvp(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    *tangents: jax.Array,
    wrt: Sequence[str],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """The tangent of the output; all of it but the tangent of the bias is one product:

    ẏ = [columns, columns_dot] · [kernel_dot; kernel] + bias_dot
    """
    dots = dict(zip(wrt, tangents, strict=True))
    bias_dot, kernel_dot = dots.pop("bias", None), dots.pop("kernel", None)
    if not mask.size:
        dots.pop("mask", None)
    moving = (*(["kernel"] if kernel_dot is not None else []), *dots)
    y = jnp.zeros((*offset.shape[:3], kernel.shape[-1]), offset.dtype)
    if x.size and moving:
        kernels = [*([kernel_dot] if kernel_dot is not None else []), *([kernel] if dots else [])]
        stacked = jnp.concatenate(kernels)
        chunks = Chunks.of(x, stacked, offset, geometry.feature_group_count, gathers=False)

        def y_of(start: jax.Array) -> jax.Array:
            call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_columns_jvp", chunks.columns)
            operands = (x, kernel, offset, mask, start, *dots.values())
            columns = call(*operands, **attributes(geometry, moving))
            return times_kernel(columns, stacked, dtype=offset.dtype, precision=precision)

        y = chunks.map(y_of)
    return (y if bias_dot is None else _plus_bias(y, bias_dot)).astype(x.dtype)


def deform_conv2d_backward(
    *operands: jax.Array,
    wrt: Sequence[str],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands in `wrt`."""
    return backward(Backward, *operands, wrt=wrt, geometry=geometry, precision=precision)


def backward(
    backward_of_primals: Callable[..., Callable[[jax.Array], dict[str, jax.Array]]],
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    grad_y: jax.Array,
    *,
    wrt: Sequence[str],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands in `wrt`; `backward_of_primals` computes all but the bias's."""
    primals = dict(x=x, kernel=kernel, offset=offset, mask=mask)
    grads = {}
    if "bias" in wrt:
        grads["bias"] = jnp.sum(grad_y, (0, 1, 2), offset.dtype).astype(x.dtype)
    asked = tuple(name for name in _PRIMALS if name in wrt and primals[name].size and x.size)
    if asked:
        grads |= backward_of_primals(primals, asked, geometry, precision)(grad_y)
    # Zero are the gradients of arrays without elements, and all gradients where there is no image.
    empty = {name: jnp.zeros_like(primals[name]) for name in wrt if name not in grads}
    return tuple((grads | empty)[name] for name in wrt)


class Backward:
    """The cotangents of the primals in `wrt`, chunk by chunk."""

    def __init__(
        self,
        primals: dict[str, jax.Array],
        wrt: tuple[str, ...],
        geometry: ConvGeometry,
        precision: jax.lax.PrecisionLike,
    ):
        self.primals, self.wrt, self.geometry, self.precision = primals, wrt, geometry, precision
        x, kernel, offset, _ = primals.values()
        groups = geometry.feature_group_count
        self.chunks = Chunks.of(x, kernel, offset, groups, gathers="x" in wrt)
        # Gradients that chunks add to have the dtype of sums.
        self.types = {name: jax.typeof(primals[name]) for name in wrt}
        for name in ("x", "kernel") if self.chunks.splits_images else ("kernel",):
            if name in wrt:
                self.types[name] = self.types[name].update(dtype=offset.dtype)

    def __call__(self, grad_y: jax.Array) -> dict[str, jax.Array]:
        """The cotangents by name."""
        chunks = self.chunks.split(grad_y)
        return self.over_chunks(lambda sums, of_chunk: self._of_chunk(sums, *of_chunk), (chunks,))

    def over_chunks(self, step: Callable, operands: tuple) -> dict[str, jax.Array]:
        """The gradients, to which `step(sums so far, (start, *operands of a chunk))` adds a chunk's."""
        starts = jnp.asarray(self.chunks.starts())
        if len(starts) == 1:
            grads = step(None, (starts[0], *(operand[0] for operand in operands)))
        else:
            # Like the primals, zeros and sums vary over the devices of a `shard_map`.
            zeros = {n: jnp.zeros_like(self.primals[n], self.types[n].dtype) for n in self.wrt}
            grads, _ = jax.lax.scan(
                lambda sums, of_chunk: (step(sums, of_chunk), None), zeros, (starts, *operands)
            )
        return {name: grad.astype(self.primals[name].dtype) for name, grad in grads.items()}

    def call(
        self,
        target: str,
        sums: dict[str, jax.Array] | None,
        operands: tuple[jax.Array, ...],
        *scratch: Any,
    ) -> dict[str, jax.Array]:
        """Calls a backward kernel: the gradients of x, offset and mask, and the columns.

        The columns, returned if the gradient of the kernel is wanted, overwrite their gradient. The
        gradients overwrite `sums`, which they start from.
        """
        types = [self.types[name] for name in self.wrt]
        aliases = {}
        for index, name in enumerate(self.wrt):
            if name == "kernel":
                types[index] = self.chunks.columns
                aliases[len(self.primals) + 1] = index
            elif sums is not None:
                aliases[len(operands)] = index
                operands = (*operands, sums[name])
        if "x" in self.wrt:
            words = (self.chunks.gather_words,)
            types.append(self.types["x"].update(shape=words, dtype=np.dtype(np.int32)))
        call = jax.ffi.ffi_call(target, (*types, *scratch), input_output_aliases=aliases)
        grads = call(*operands, **attributes(self.geometry, self.wrt))
        names = ("columns" if name == "kernel" else name for name in self.wrt)
        return dict(zip(names, grads, strict=False))  # not the scratch

    def _of_chunk(
        self, sums: dict[str, jax.Array] | None, start: jax.Array, grad_y: jax.Array
    ) -> dict[str, jax.Array]:
        """The gradients, a chunk's added; `sums` are the gradients of the chunks before."""
        operands, options = (*self.primals.values(), start), dict(precision=self.precision)
        if self.wrt == ("kernel",):
            grads = {"columns": _columns(self.chunks, self.geometry, *operands)}
        else:
            kernel, columns = self.primals["kernel"], self.chunks.columns
            grad_columns = times_kernel_transposed(grad_y, kernel, columns, **options)
            target = "jax_dcn_deform_conv2d_columns_backward"
            grads = self.call(target, sums, (*operands, grad_columns))
        if "kernel" in self.wrt:
            shape, dtype = self.types["kernel"].shape, self.types["kernel"].dtype
            columns = grads.pop("columns")
            product = transposed_times(columns, grad_y, dtype=dtype, **options).reshape(shape)
            grads["kernel"] = product if sums is None else sums["kernel"] + product
        return {name: grads[name] for name in self.wrt}


def _columns(chunks: Chunks, geometry: ConvGeometry, x, kernel, offset, mask, start) -> jax.Array:
    """The columns of the chunk that begins at `start`; only the shape of `kernel` is read."""
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_columns", chunks.columns)
    return call(x, kernel, offset, mask, start, **attributes(geometry))


def _plus_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias.astype(y.dtype)[None, None, None, :]
