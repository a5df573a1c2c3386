# SPDX-License-Identifier: MIT
"""Merges an axis that `vmap` maps over into one that the operator has, and splits it off again."""

import math

import jax.numpy as jnp


def mapped_size(operands, axes):
    """Size of the mapped axis."""
    return next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)


def fold(operand, mapped_axis, size, axis):
    """Merges the mapped axis, made if there is none, into the one at `axis`, as its slower part."""
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
    """Splits the mapped axis off the one at `axis`."""
    shape = result.shape
    return result.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])
