# SPDX-License-Identifier: MIT
"""Splits a primitive over devices by the names of its arrays' axes: the part of `extension.py` that knows meshes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Names = tuple[str | None, ...]
MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Axes:
    """The names of the axes that a primitive can be split along.

    Arrays are split together along axes of one name; `None` is an axis that every device needs
    whole. A result is summed over the devices of a name that it lacks.

    Attributes:
      names: For each array a name, or `None`, for each of its axes.
      operands: The arrays that the primitive takes.
      results: The arrays that it returns.
      parts: How many equal parts, of neighbouring elements, the axes of a name consist of: they are
        split over a divisor of that many devices. Where the same devices are wanted for two names,
        the one named first gets them.
      apart: For a name the arrays that are no sum over it: as an operand such an array is added
        once, and as a result it is the same on every device.
      local: `(params, splits)` to the parameters of the call on one device, where `splits` is the
        number of devices along each name.
    """

    names: Mapping[str, Names]
    operands: Sequence[str]
    results: Sequence[str]
    parts: Mapping[str, int]
    apart: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    local: Callable[[dict, Mapping[str, int]], dict] = lambda params, splits: params


@dataclasses.dataclass(frozen=True)
class Split:
    """`axes`, and the axes of the mesh that each of their names is split over."""

    axes: Axes
    mesh_axes: Mapping[str, MeshAxes]
    sizes: Mapping[str, int]  # of the mesh

    @property
    def operand_specs(self) -> tuple[PartitionSpec, ...]:
        return tuple(map(self._spec, self.axes.operands))

    @property
    def result_specs(self) -> tuple[PartitionSpec, ...]:
        return tuple(map(self._spec, self.axes.results))

    def _spec(self, array: str) -> PartitionSpec:
        entries = (self.mesh_axes.get(name or "", ()) for name in self.axes.names[array])
        return PartitionSpec(*(e[0] if len(e) == 1 else e or None for e in entries))

    def per_device(self, f: Callable) -> Callable:
        """What each device computes, for `f(*operands, **params)` that returns a tuple."""
        splits = {
            name: math.prod(self.sizes[axis] for axis in axes)
            for name, axes in self.mesh_axes.items()
        }

        def call(*operands, **params):
            once = map(self._once, self.axes.operands, operands)
            return self._sum(f(*once, **self.axes.local(params, splits)))

        return call

    def shard_map(self, avals: Sequence[Any], f: Callable, **params) -> Callable:
        """`per_device` on the mesh of the operands' types."""
        mesh, per_device = explicit_mesh(avals), self.per_device(f)
        return jax.shard_map(
            lambda *operands: per_device(*operands, **params),
            mesh=mesh,
            in_specs=self.operand_specs,
            out_specs=self.result_specs,
            axis_names=set(mesh.explicit_axes),
            check_vma=False,  # XLA cannot know that sums of equal things are equal
        )

    def _once(self, array: str, operand: jax.Array) -> jax.Array:
        """`operand`, or zeros on all devices but one where they would add it several times."""
        repeated = (
            self.mesh_axes.get(name, ())
            for name, arrays in self.axes.apart.items()
            if array in arrays
        )
        if not (mesh_axes := sum(repeated, ())):
            return operand
        return jnp.where(jax.lax.axis_index(mesh_axes) == 0, operand, jnp.zeros_like(operand))

    def _sum(self, results: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Adds up what the devices have computed; results over the same devices in one call."""
        over: dict[MeshAxes, list[int]] = {}
        for index, array in enumerate(self.axes.results):
            over.setdefault(self._summed_over(array), []).append(index)
        summed = list(results)
        for mesh_axes, indices in over.items():
            if mesh_axes:
                sums = jax.lax.psum([results[index] for index in indices], mesh_axes)
                for index, total in zip(indices, sums, strict=True):
                    summed[index] = total
        return tuple(summed)

    def _summed_over(self, array: str) -> MeshAxes:
        missing = (
            mesh_axes
            for name, mesh_axes in self.mesh_axes.items()
            if name not in self.axes.names[array] and array not in self.axes.apart.get(name, ())
        )
        return sum(missing, ())


def split(axes: Axes, specs: Sequence[Sequence[PartitionSpec]], sizes: Mapping[str, int]) -> Split:
    """Splits along `axes` as the operands and results are already split, as far as that can be.

    Args:
      axes: Those of the primitive.
      specs: The shardings of the operands, and where known of the results.
      sizes: The number of devices along each axis of the mesh.
    """
    arrays = [
        (axes.names[array], spec)
        for arrays, array_specs in zip((axes.operands, axes.results), specs, strict=False)
        for array, spec in zip(arrays, array_specs, strict=True)
    ]
    taken: set[str] = set()
    mesh_axes: dict[str, MeshAxes] = {}
    for name, parts in axes.parts.items():
        wanted = (
            _longest_divisor(entry, taken, parts, sizes)
            for names, spec in arrays
            for candidate, entry in zip(names, spec, strict=False)
            if candidate == name
        )
        best = max(wanted, key=lambda found: math.prod(sizes[a] for a in found), default=())
        if best:
            mesh_axes[name] = best
            taken.update(best)
    return Split(axes, mesh_axes, sizes)


def _longest_divisor(entry: Any, taken: set[str], parts: int, sizes: Mapping[str, int]) -> MeshAxes:
    """The leading mesh axes of an entry of a spec that are free and split `parts` evenly."""
    found: MeshAxes = ()
    for axis in _mesh_axes(entry):
        if axis in taken or parts % math.prod(sizes[a] for a in (*found, axis)):
            break
        found = (*found, axis)
    return found


def _mesh_axes(entry: Any) -> MeshAxes:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


# ------------------------------------------------------------- automatic: XLA chooses the shardings


def partitioned(f: Callable, axes: Axes, shapes: Sequence[Sequence[Sequence[int]]], **params):
    """`f(*operands, **params)`, which returns a tuple, with a rule by which XLA splits it."""

    def partition(mesh, operands, results):
        specs = [[_spec_of(a.sharding) for a in arrays] for arrays in (operands, results)]
        mesh = mesh if not mesh.empty else _any_mesh(operands)
        chosen = split(axes, specs, mesh.shape)
        per_device = chosen.per_device(f)
        return (
            mesh,
            lambda *operands: per_device(*operands, **params),
            tuple(NamedSharding(mesh, spec) for spec in chosen.result_specs),
            tuple(NamedSharding(mesh, spec) for spec in chosen.operand_specs),
        )

    # Inside `jit`, since `custom_partitioning` refuses functions with constants.
    call = custom_partitioning(jax.jit(lambda *operands: f(*operands, **params)))
    call.def_partition(partition=partition, sharding_rule=_shardy_rule(axes, shapes))
    return call


def _spec_of(sharding: Any) -> PartitionSpec:
    # Where the shardings of a program are of different meshes, JAX names none of their axes: the
    # operands are gathered then.
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _any_mesh(operands: Sequence[jax.ShapeDtypeStruct]) -> Mesh:
    return Mesh(np.array(list(operands[0].sharding.device_set)), ("devices",))


def _shardy_rule(axes: Axes, shapes: Sequence[Sequence[Sequence[int]]]) -> SdyShardingRule:
    """Translates the names to Shardy's factors."""
    whole: list[str] = []
    used: dict[str, None] = {}
    sizes: dict[str, int] = {}

    def rest(size: int) -> str:
        whole.append(f"whole{len(whole)}")
        return whole[-1]

    def dimension(name: str | None, size: int):
        if name is None or axes.parts.get(name, 1) < 2:
            return rest(size)
        used.setdefault(name)
        if size == axes.parts[name]:
            return name
        factors = CompoundFactor(name, rest(size))
        sizes.update(zip(factors, (axes.parts[name], size // axes.parts[name]), strict=True))
        return factors

    operands, results = (
        tuple(
            ArrayMapping(*map(dimension, axes.names[array], shape))
            for array, shape in zip(arrays, array_shapes, strict=True)
        )
        for arrays, array_shapes in zip((axes.operands, axes.results), shapes, strict=True)
    )
    alone = {d for mapping in (*operands, *results) for d in mapping if isinstance(d, str)}
    kept = {name for array in axes.results for name in axes.names[array]}
    return SdyShardingRule(
        operands,
        results,
        reduction_factors=tuple(name for name in used if name not in kept),
        need_replication_factors=tuple(whole),
        **{factor: size for factor, size in sizes.items() if factor not in alone},  # type: ignore[arg-type]
    )


# --------------------------------------------------------------- explicit: shardings are in the types


def explicit_mesh(avals: Sequence[Any]) -> Any:
    """The mesh of the operands' types if it has axes of type Explicit, else `None`."""
    for aval in avals:
        if AxisType.Explicit in aval.sharding.mesh.axis_types:
            return aval.sharding.mesh
    return None
