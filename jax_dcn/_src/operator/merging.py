# SPDX-License-Identifier: MIT
"""Merges and parts axes of arrays whose types say how they are split over devices.

On a mesh with explicit axes, JAX refuses a reshape that does not say how its result is split.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jax_dcn._src.operator.extension import gather
from jax_dcn._src.operator.sharding import MeshAxes, entry_axes, explicit_mesh, longest_divisor


def merged(array: jax.Array, axis: int) -> jax.Array:
    """Merges the axes `axis` and `axis + 1`; the merged axis is split as both were."""
    size = array.shape[axis] * array.shape[axis + 1]
    mesh_axes = _explicit_axes(array, axis) + _explicit_axes(array, axis + 1)
    return _with_axes(array, axis, 2, [(size, mesh_axes)])


def parted(array: jax.Array, axis: int, parts: Any, elements: Any = None) -> jax.Array:
    """Makes two axes of `axis`, the parts and their elements, and keeps them split where possible.

    The number of elements of a part is needed where there may be no parts.
    """
    if elements is None:
        elements = array.shape[axis] // parts
    mesh_axes = _explicit_axes(array, axis)
    sizes = jax.typeof(array).sharding.mesh.shape
    outer = longest_divisor(mesh_axes, set(), parts, sizes)
    inner = longest_divisor(mesh_axes[len(outer) :], set(), elements, sizes)
    return _with_axes(array, axis, 1, [(parts, outer), (elements, inner)])


def gathered(array: jax.Array, *axes: int) -> jax.Array:
    """Gathers `axes`, on a mesh with automatic axes, too."""
    return gather(whole(array, *axes), axes)


def whole(array: jax.Array, *axes: int) -> jax.Array:
    """Gathers `axes`, if the type of `array` says that they are split."""
    if not any(_explicit_axes(array, axis) for axis in axes):
        return array
    sharding = jax.typeof(array).sharding
    spec = [None if axis in axes else entry for axis, entry in enumerate(sharding.spec)]
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def _explicit_axes(array: jax.Array, axis: int) -> MeshAxes:
    """The axes of the mesh that the type of `array` splits `axis` over."""
    aval = jax.typeof(array)
    return () if explicit_mesh([aval]) is None else entry_axes(aval.sharding.spec[axis])


def _with_axes(
    array: jax.Array, axis: int, count: int, axes: Sequence[tuple[Any, MeshAxes]]
) -> jax.Array:
    """`array` with other axes in the place of `count` axes from `axis` on: their sizes and splits."""
    sizes, entries = zip(*axes, strict=True)
    shape = (*array.shape[:axis], *sizes, *array.shape[axis + count :])
    aval = jax.typeof(array)
    if explicit_mesh([aval]) is None:
        return array.reshape(shape)
    old = aval.sharding.spec
    spec = PartitionSpec(*old[:axis], *(e or None for e in entries), *old[axis + count :])
    return jax.lax.reshape(array, shape, out_sharding=NamedSharding(aval.sharding.mesh, spec))
