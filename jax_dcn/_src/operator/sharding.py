# SPDX-License-Identifier: MIT
"""Splits a primitive over devices by the names of the axes of its arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Names = tuple[str | None, ...]
MeshAxes = tuple[str, ...]


def _same_params(params: dict[str, Any], splits: Mapping[str, int]) -> dict[str, Any]:
    """The parameters on one device, where they do not depend on the split."""
    return params


@dataclasses.dataclass(frozen=True)
class Axes:
    """The names of the axes that a primitive can be split along.

    Axes of one name are split together; an axis called `None` is whole on every device. A result
    that lacks a name is summed over the devices along that name.

    Attributes:
      names: For each array, the name of each axis, or `None`.
      operands: The arrays that the primitive takes.
      results: The arrays that the primitive returns.
      parts: For each name, the number of equal parts of neighbouring elements that its axes consist
        of; the number of devices along the name divides it. Where two names want the same devices,
        the name that comes first in this mapping gets them.
      apart: For a name, the arrays that lack the name and yet are no sum over it. As an operand, such
        an array is added on one device only; as a result, it is the same on every device.
      local: `(params, splits)` to the parameters of the call on one device, where `splits` holds the
        number of devices along each name.
    """

    names: Mapping[str, Names]
    operands: Sequence[str]
    results: Sequence[str]
    parts: Mapping[str, int]
    apart: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    local: Callable[[dict[str, Any], Mapping[str, int]], dict[str, Any]] = _same_params


@dataclasses.dataclass(frozen=True)
class Split:
    """How a primitive is split over a mesh.

    Attributes:
      axes: The named axes of the primitive.
      mesh: The devices.
      mesh_axes: For each name that is split, the axes of the mesh that it is split over.
    """

    axes: Axes
    mesh: Mesh | AbstractMesh
    mesh_axes: Mapping[str, MeshAxes]

    @property
    def operand_specs(self) -> tuple[PartitionSpec, ...]:
        """How the operands are split."""
        return tuple(map(self._spec, self.axes.operands))

    @property
    def result_specs(self) -> tuple[PartitionSpec, ...]:
        """How the results are split."""
        return tuple(map(self._spec, self.axes.results))

    def _spec(self, array: str) -> PartitionSpec:
        entries = (self.mesh_axes.get(name or "", ()) for name in self.axes.names[array])
        return PartitionSpec(*(e[0] if len(e) == 1 else e or None for e in entries))

    def per_device(self, f: Callable) -> Callable:
        """The function that each device computes, for `f(*operands, **params)` that returns a tuple."""
        splits = {
            name: math.prod(self.mesh.shape[axis] for axis in axes)
            for name, axes in self.mesh_axes.items()
        }

        def call(*operands, **params):
            once = map(self._once, self.axes.operands, operands)
            return self._sum(f(*once, **self.axes.local(params, splits)))

        return call

    def shard_map(self, f: Callable, **params) -> Callable:
        """`f(*operands, **params)` on all devices of a mesh with explicit axes."""
        return jax.shard_map(
            functools.partial(_forgetting(self.per_device(f)), **params),
            mesh=self.mesh,
            in_specs=self.operand_specs,
            out_specs=self.result_specs,
            axis_names=set(self.mesh.explicit_axes),
            check_vma=False,  # JAX does not know that a sum over devices is the same on all
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
        """Adds up the results of the devices: one call for all results over the same devices."""
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
        """The axes of the mesh whose devices each hold a part of the sum `array`."""
        missing = (
            mesh_axes
            for name, mesh_axes in self.mesh_axes.items()
            if name not in self.axes.names[array] and array not in self.axes.apart.get(name, ())
        )
        return sum(missing, ())


def split(axes: Axes, specs: Sequence[Sequence[PartitionSpec]], mesh: Mesh | AbstractMesh) -> Split:
    """Splits along `axes` as the operands and results are already split, as far as possible.

    Args:
      axes: The named axes of the primitive.
      specs: The shardings of the operands, and where known of the results.
      mesh: The devices.
    """
    sizes = mesh.shape
    arrays = [
        (axes.names[array], spec)
        for arrays, array_specs in zip((axes.operands, axes.results), specs, strict=False)
        for array, spec in zip(arrays, array_specs, strict=True)
    ]
    taken: set[str] = set()
    mesh_axes: dict[str, MeshAxes] = {}
    for name, parts in axes.parts.items():
        wanted = (
            longest_divisor(entry, taken, parts, sizes)
            for names, spec in arrays
            for candidate, entry in zip(names, spec, strict=False)
            if candidate == name
        )
        best = max(wanted, key=lambda found: math.prod(sizes[a] for a in found), default=())
        if best:
            mesh_axes[name] = best
            taken.update(best)
    return Split(axes, mesh, mesh_axes)


def longest_divisor(entry: Any, taken: set[str], parts: int, sizes: Mapping[str, int]) -> MeshAxes:
    """The leading mesh axes, in an entry of a spec, that are not taken and split `parts` evenly."""
    found: MeshAxes = ()
    for axis in entry_axes(entry):
        if axis in taken or parts % math.prod(sizes[a] for a in (*found, axis)):
            break
        found = (*found, axis)
    return found


def entry_axes(entry: Any) -> MeshAxes:
    """The axes of the mesh in an entry of a spec."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


# ------------------------------------------------------------- automatic: XLA chooses the shardings


def partitioned(f: Callable, axes: Axes, **params):
    """`f(*operands, **params)`, which returns a tuple, with a rule by which XLA splits the call."""

    def partition(mesh, operands, results):
        specs = [[_spec_of(a.sharding) for a in arrays] for arrays in (operands, results)]
        mesh = mesh if not mesh.empty else _any_mesh(operands)
        chosen = split(axes, specs, mesh)
        per_device = chosen.per_device(f)
        return (
            mesh,
            functools.partial(per_device, **params),
            tuple(NamedSharding(mesh, spec) for spec in chosen.result_specs),
            tuple(NamedSharding(mesh, spec) for spec in chosen.operand_specs),
        )

    # Inside `jit`, since `custom_partitioning` refuses functions with constants; a lambda, since it
    # refuses functions with keyword arguments.
    call = custom_partitioning(jax.jit(lambda *operands: f(*operands, **params)))
    call.def_partition(partition=partition, sharding_rule=_shardy_rule(axes))
    return call


def _spec_of(sharding: Any) -> PartitionSpec:
    # Where the shardings of a program belong to different meshes, JAX names none of their axes; the
    # operands are then gathered.
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def _any_mesh(operands: Sequence[jax.ShapeDtypeStruct]) -> Mesh:
    return Mesh(np.array(list(operands[0].sharding.device_set)), ("devices",))


def _shardy_rule(axes: Axes) -> SdyShardingRule:
    """The named axes as Shardy's factors: one factor a name, and one for every other axis.

    A name may have axes of several sizes, of which JAX takes the smallest as the size of the factor.
    """
    whole: list[str] = []
    used: dict[str, None] = {}

    def factor(name: str | None) -> str:
        if name is None or axes.parts.get(name, 1) < 2:
            whole.append(f"whole{len(whole)}")
            return whole[-1]
        used.setdefault(name)
        return name

    operands, results = (
        tuple(ArrayMapping(*map(factor, axes.names[array])) for array in arrays)
        for arrays in (axes.operands, axes.results)
    )
    kept = {name for array in axes.results for name in axes.names[array]}
    return SdyShardingRule(
        operands,
        results,
        reduction_factors=tuple(name for name in used if name not in kept),
        need_replication_factors=tuple(whole),
    )


# --------------------------------------------------------------- explicit: shardings are in the types


def explicit_mesh(avals: Sequence[Any]) -> Any:
    """The mesh in the types of the operands, if the mesh has explicit axes; else `None`."""
    for aval in avals:
        if AxisType.Explicit in aval.sharding.mesh.axis_types:
            return aval.sharding.mesh
    return None


def varying(aval: Any) -> frozenset[str]:
    """The axes of an enclosing `shard_map` that values may differ along."""
    if hasattr(aval, "manual_axis_type"):
        axes: frozenset[str] = aval.manual_axis_type.varying
        return axes
    return aval.vma  # before JAX 0.10


def _forgetting(f: Callable) -> Callable:
    """`f` for a `shard_map` that does not check how values vary, inside one that does.

    The inner `shard_map` forgets how results vary over devices, and remembers how operands vary. JAX
    cannot differentiate a function whose operands and results disagree. A product with one is a result.
    """

    def call(*operands, **params):
        return f(*(1 * o if varying(jax.typeof(o)) else o for o in operands), **params)

    return call
