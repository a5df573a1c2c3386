# SPDX-License-Identifier: MIT
"""Merges the axis that `vmap` maps over into an axis of the operator, and splits it off again."""

import functools
import math

import jax
import jax.numpy as jnp

from jax_dcn._src.operator.sizes import is_free

# Most bytes that copies of operands take which are not mapped. Small calls are faster as one call.
_COPY_BYTES = 8 * 2**20


def mapped_size(operands, axes):
    """Size of the mapped axis."""
    return next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)


def fold(operand, mapped_axis, size, axis):
    """Merges the mapped axis into the axis `axis`, of which it becomes the slower part.

    Args:
      operand: The array.
      mapped_axis: The mapped axis of the array; `None` repeats the array along a new one.
      size: Size of the mapped axis.
      axis: Axis to merge into, counted without the mapped axis; `None` leaves the array alone.
    """
    if axis is None:
        return operand
    if mapped_axis is None:
        shape = (*operand.shape[:axis], size, *operand.shape[axis:])
        operand = jnp.broadcast_to(jnp.expand_dims(operand, axis), shape)
    else:
        operand = jnp.moveaxis(operand, mapped_axis, axis)
    merged = math.prod(operand.shape[axis : axis + 2])
    return operand.reshape(*operand.shape[:axis], merged, *operand.shape[axis + 2 :])


def unfold(result, size, axis):
    """Splits the mapped axis, of this size, off the axis `axis`."""
    shape = result.shape
    return result.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])


def images_differ(primitive, axes, **params):
    """Whether each element of the mapped axis has images `x`, or a gradient of them, of its own."""
    arrays = primitive.arrays(**params)
    mapped = {name for name, axis in zip(arrays.operands, axes, strict=True) if axis is not None}
    return "x" in mapped.union(arrays.results)


def copied_beside_images(primitive, operands, axes, **params):
    """The operands that a batching rule copies which repeats images only where they differ.

    The images are the first operand. Their gradient differs along the mapped axis, if there is one.
    """
    first = 0 if images_differ(primitive, axes, **params) else 1
    pairs = zip(operands[first:], axes[first:], strict=True)
    return [operand for operand, axis in pairs if axis is None]


def bounded(copied):
    """Decorates a batching rule that copies operands which are not mapped, to bound the copies.

    Where all copies would be large, the mapped axis becomes a loop.

    Args:
      copied: `(primitive, operands, axes, **params)` to the operands that the rule copies, once for
        each element of the mapped axis.
    """

    def decorate(rule):
        @functools.wraps(rule)
        def batching(primitive, operands, axes, **params):
            size = mapped_size(operands, axes)
            once = sum(map(_bytes, copied(primitive, operands, axes, **params)))
            if is_free(size, once) or size * once <= _COPY_BYTES:
                return rule(primitive, operands, axes, **params)
            return _looped(functools.partial(primitive.bind, **params), operands, axes)

        return batching

    return decorate


def _looped(bind, operands, axes):
    """Calls `bind` for one element of the mapped axis after the other."""
    mapped = {
        i: jnp.moveaxis(operand, axis, 0)
        for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
        if axis is not None
    }
    # Widened outside of the loop, so that the loop's derivative sums their gradients in 32 bits.
    wide = {i: _widened(o) for i, o in enumerate(operands) if i not in mapped}

    def one(mapped):
        values = mapped | {i: value.astype(operands[i].dtype) for i, value in wide.items()}
        return bind(*(values[i] for i in range(len(operands))))

    results = jax.lax.map(one, mapped)
    return results, (0,) * len(results)


def _widened(operand):
    return operand.astype(jnp.float32) if operand.dtype.itemsize < 4 else operand


def _bytes(operand):
    return math.prod(operand.shape) * operand.dtype.itemsize
