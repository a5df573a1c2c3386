# SPDX-License-Identifier: MIT
"""Rules for `vmap`: the mapped axis becomes a batch axis, part of another axis, or a loop."""

import functools
import math

import jax
import jax.numpy as jnp

from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.merging import merged, parted, whole
from jax_dcn._src.operator.sizes import is_free

# Bytes that the copies of unmapped operands may take. Small calls are faster as one call.
_COPY_BYTES = 8 * 2**20


def mapped_size(operands, axes):
    """Size of the mapped axis."""
    return next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)


def mapped_first(operand, axis, size):
    """Moves the mapped axis to the front; an operand that is not mapped is repeated."""
    if axis is None:
        return jnp.broadcast_to(operand[None], (size, *operand.shape))
    return jnp.moveaxis(operand, axis, 0)


def bind_batched(primitive, operands, axes, **params):
    """Binds `primitive` with the mapped axis as one more batch axis: `(results, axes)`."""
    names, size = primitive.arrays(**params).operands, mapped_size(operands, axes)
    batched = [
        mapped_first(operand, axis, size) if name in primitive.item_ranks else operand
        for name, operand, axis in zip(names, operands, axes, strict=True)
    ]
    results = primitive.bind(*batched, **params)
    return results, (0,) * len(results)


def bind_folded(primitive, operands, axes, into, **params):
    """Binds `primitive` with the mapped axis folded into axes of the operator: `(results, axes)`.

    Args:
      primitive, operands, axes, **params: As a batching rule receives them.
      into: For each array by name, the axis to fold into, counted from the last axis. An operand that
        is not named is left alone.
    """
    arrays, size = primitive.arrays(**params), mapped_size(operands, axes)
    if not is_free(size) and size == 0:  # an axis without elements cannot be parted from another
        return looped(primitive, operands, axes, **params)
    folded = [
        _folded(operand, axis, size, into[name]) if name in into else operand
        for name, operand, axis in zip(arrays.operands, operands, axes, strict=True)
    ]
    results = primitive.bind(*folded, **params)
    places = [r.ndim + into[name] for name, r in zip(arrays.results, results, strict=True)]
    return [parted(r, p, size) for r, p in zip(results, places, strict=True)], places


def _folded(operand, mapped_axis, size, into):
    """Merges the mapped axis into the axis `into`, of which it becomes the slower part."""
    place = operand.ndim - (mapped_axis is not None) + into
    moved = jnp.moveaxis(mapped_first(operand, mapped_axis, size), 0, place)
    return merged(moved, place)


def mapped_arrays(primitive, axes, **params):
    """Names of the arrays that differ along the mapped axis: mapped operands, and all results."""
    arrays = primitive.arrays(**params)
    mapped = {name for name, axis in zip(arrays.operands, axes, strict=True) if axis is not None}
    return mapped.union(arrays.results)


def images_differ(primitive, axes, **params):
    """Whether each element of the mapped axis has images `x`, or a gradient of them, of its own."""
    return "x" in mapped_arrays(primitive, axes, **params)


def copied_beside_images(primitive, operands, axes, **params):
    """The copied operands of a batching rule that repeats images only where images differ.

    The images are the first operand. A gradient of the images always differs along the mapped axis.
    """
    first = 0 if images_differ(primitive, axes, **params) else 1
    pairs = zip(operands[first:], axes[first:], strict=True)
    return [operand for operand, axis in pairs if axis is None]


def bounded(copied):
    """Decorates a batching rule that copies operands which are not mapped, to bound the copies.

    Where all copies would be large, the mapped axis becomes a loop. So does an axis without elements,
    which cannot be parted from the axis that it is folded into.

    Args:
      copied: `(primitive, operands, axes, **params)` to the operands that the rule copies, once for
        each element of the mapped axis.
    """

    def decorate(rule):
        @functools.wraps(rule)
        def batching(primitive, operands, axes, **params):
            size = mapped_size(operands, axes)
            once = sum(map(_bytes, copied(primitive, operands, axes, **params)))
            if is_free(size, once) or (size and size * once <= _COPY_BYTES):
                return rule(primitive, operands, axes, **params)
            return looped(primitive, operands, axes, **params)

        return batching

    return decorate


def looped(primitive, operands, axes, **params):
    """Binds `primitive` for one element of the mapped axis after the other: `(results, axes)`."""
    mapped = {
        i: whole(jnp.moveaxis(operand, axis, 0), 0)
        for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
        if axis is not None
    }
    # Widened outside of the loop, so that the loop's derivative sums their gradients in 32 bits.
    wide = {i: o.astype(sum_dtype(o)) for i, o in enumerate(operands) if i not in mapped}

    def one(mapped):
        values = mapped | {i: value.astype(operands[i].dtype) for i, value in wide.items()}
        return primitive.bind(*(values[i] for i in range(len(operands))), **params)

    results = jax.lax.map(one, mapped)
    return results, (0,) * len(results)


def _bytes(operand):
    return math.prod(operand.shape) * operand.dtype.itemsize
