# SPDX-License-Identifier: MIT
"""Merges the axis that `vmap` maps over into an axis of the operator, and splits it off again."""

import math

import jax.numpy as jnp


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
