# SPDX-License-Identifier: MIT
"""Deformable convolution on CUDA: our kernels sample columns, XLA multiplies them with the kernel.

    y = columns · kernel + bias            columns [pixels, K, C] = m_k v_k

The backward pass makes the gradient of the columns, `grad_y · kernelᵀ`, takes it back to x, offset
and mask, puts the columns in its place and multiplies them with `grad_y`. All of this is done chunk
by chunk, so that columns stay in the cache of the GPU and memory does not grow with the batch.

Where fused kernels can do better, they do (`fused.py`): columns are then never held in memory, but
for their gradient where that of x is asked for.

The functions have the signatures of those in `jax_dcn.reference.deform_conv2d`.
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
from jax_dcn._src.deform_conv2d.fused import parts_of_grad_kernel, why_not_fused
from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.native import call

_PRIMALS = ("x", "kernel", "offset", "mask")


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
    if why_not_fused(x, kernel, offset, geometry, precision) is None:
        y_type = jax.typeof(x).update(shape=(*offset.shape[:3], kernel.shape[-1]))
        return call("forward", y_type, (x, kernel, offset, mask, bias), geometry)
    options = dict(dtype=offset.dtype, precision=precision)
    y = jnp.zeros((*offset.shape[:3], kernel.shape[-1]), offset.dtype)
    if x.size:
        chunks = Chunks.of(x, kernel, offset, geometry.feature_group_count, gathers=False)

        def y_of(start: jax.Array) -> jax.Array:
            columns = call("columns", chunks.columns, (x, kernel, offset, mask, start), geometry)
            return times_kernel(columns, kernel, **options)

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
    """Its tangent, of which all but the bias's is one product:

    ẏ = [columns, columns_dot] · [kernel_dot; kernel] + bias_dot
    """
    options = dict(dtype=offset.dtype, precision=precision)
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
            operands = (x, kernel, offset, mask, start, *dots.values())
            columns = call("columns_jvp", chunks.columns, operands, geometry, moving)
            return times_kernel(columns, stacked, **options)

        y = chunks.map(y_of)
    return (y if bias_dot is None else _plus_bias(y, bias_dot)).astype(x.dtype)


def deform_conv2d_backward(
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
    """The cotangents of the operands in `wrt`."""
    primals = dict(x=x, kernel=kernel, offset=offset, mask=mask)
    grads = {}
    if "bias" in wrt:
        grads["bias"] = jnp.sum(grad_y, (0, 1, 2), offset.dtype).astype(x.dtype)
    asked = [name for name in _PRIMALS if name in wrt and primals[name].size and x.size]
    backward: type[_Backward] = _Backward
    if why_not_fused(x, kernel, offset, geometry, precision) is None:
        backward = _FusedBackward
        if "kernel" in asked:
            asked.remove("kernel")
            grads["kernel"] = _fused_grad_kernel(x, kernel, offset, mask, grad_y, geometry)
    if asked:
        grads |= backward(primals, tuple(asked), geometry, precision)(grad_y)
    # What has no elements, and the gradient of a kernel that no image was multiplied with.
    empty = {name: jnp.zeros_like(primals[name]) for name in wrt if name not in grads}
    return tuple((grads | empty)[name] for name in wrt)


def _fused_grad_kernel(x, kernel, offset, mask, grad_y, geometry: ConvGeometry) -> jax.Array:
    parts = (parts_of_grad_kernel(x, kernel, offset), *kernel.shape)
    results = jax.typeof(kernel), jax.typeof(kernel).update(shape=parts, dtype=offset.dtype)
    return call("grad_kernel", results, (x, kernel, offset, mask, grad_y), geometry)[0]


class _Backward:
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
        # While chunks add to the gradients, these are in the type of sums.
        self.types = {name: jax.typeof(primals[name]) for name in wrt}
        for name in ("x", "kernel") if self.chunks.splits_images else ("kernel",):
            if name in wrt:
                self.types[name] = self.types[name].update(dtype=offset.dtype)

    def __call__(self, grad_y: jax.Array) -> dict[str, jax.Array]:
        chunks = self.chunks.split(grad_y)
        return self._over_chunks(lambda sums, of: self._of_chunk(sums, *of), (chunks,))

    def _over_chunks(self, step: Callable, operands: tuple) -> dict[str, jax.Array]:
        """Adds up the gradients that `step(sums so far, (start, *operands of a chunk))` gives."""
        starts = jnp.asarray(self.chunks.starts())
        if len(starts) == 1:
            grads = step(None, (starts[0], *(operand[0] for operand in operands)))
        else:
            zeros = {n: jnp.zeros(t.shape, t.dtype) for n, t in self.types.items()}
            grads, _ = jax.lax.scan(
                lambda sums, of: (step(sums, of), None), zeros, (starts, *operands)
            )
        return {name: grad.astype(self.primals[name].dtype) for name, grad in grads.items()}

    def _of_chunk(
        self, sums: dict[str, jax.Array] | None, start: jax.Array, grad_y: jax.Array
    ) -> dict[str, jax.Array]:
        """The gradients with those of one chunk in them; `sums` are those of the chunks before."""
        operands, options = (*self.primals.values(), start), dict(precision=self.precision)
        if self.wrt == ("kernel",):
            grads = {"columns": call("columns", self.chunks.columns, operands, self.geometry)}
        else:
            kernel, columns = self.primals["kernel"], self.chunks.columns
            grad_columns = times_kernel_transposed(grad_y, kernel, columns, **options)
            grads = self._call("columns_backward", sums, (*operands, grad_columns))
        if "kernel" in self.wrt:
            shape, dtype = self.types["kernel"].shape, self.types["kernel"].dtype
            columns = grads.pop("columns")
            product = transposed_times(columns, grad_y, dtype=dtype, **options).reshape(shape)
            grads["kernel"] = product if sums is None else sums["kernel"] + product
        return {name: grads[name] for name in self.wrt}

    def _call(
        self,
        target: str,
        sums: dict[str, jax.Array] | None,
        operands: tuple[jax.Array, ...],
        *scratch: Any,
    ) -> dict[str, jax.Array]:
        """The gradients of x, offset and mask, and the columns, in the place of their gradient."""
        results = self.types | ({"kernel": self.chunks.columns} if "kernel" in self.wrt else {})
        aliases = {}
        for index, name in enumerate(self.wrt):
            if name == "kernel":
                aliases[len(self.primals) + 1] = index
            elif sums is not None:
                aliases[len(operands)] = index
                operands = (*operands, sums[name])
        types = list(results.values())
        if "x" in self.wrt:
            words = (self.chunks.gather_words,)
            types.append(self.types["x"].update(shape=words, dtype=np.dtype(np.int32)))
        grads = call(target, (*types, *scratch), operands, self.geometry, self.wrt, aliases)
        names = ("columns" if name == "kernel" else name for name in self.wrt)
        return dict(zip(names, grads, strict=False))  # not the scratch


class _FusedBackward(_Backward):
    """The same of x, offset and mask, without a product of XLA's.

    Only the gradient of x is made of columns in memory; without it, there is one chunk.
    """

    def __call__(self, grad_y: jax.Array) -> dict[str, jax.Array]:
        scratch = (self.chunks.columns,) if "x" in self.wrt else ()
        if not scratch:
            self.chunks = self.chunks.whole()

        def step(sums, of):
            operands = (*self.primals.values(), *of, grad_y)
            return self._call("samples_backward", sums, operands, *scratch)

        return self._over_chunks(step, ())


def _plus_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias.astype(y.dtype)[None, None, None, :]
