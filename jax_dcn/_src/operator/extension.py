# SPDX-License-Identifier: MIT
"""Defines JAX primitives: the one file that knows JAX's extension interface.

A call goes `OperatorPrimitive.bind` -> `_lower` -> `OperatorPrimitive.compute` -> the function of an
implementation.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

# Private: the set of primitives whose lowering must know the devices. `custom_partitioning` is in the
# set, too. JAX 0.8.1 to 0.12.0 has no public way to add a primitive.
from jax._src import dispatch
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import NamedSharding, PartitionSpec

from jax_dcn._src.operator import sharding
from jax_dcn._src.operator.native import Native
from jax_dcn._src.operator.signature import Arrays

# Values that JAX's rules receive in place of an operand, for `rules.py`.
is_undefined_primal = ad.is_undefined_primal
instantiate_zeros = ad.instantiate_zeros
Zero = ad.Zero


class OperatorPrimitive(Primitive):
    """A primitive of an operator; the attributes are the arguments of `define_primitive`.

    The parameters of every primitive hold `implementation`, the names to try in order.
    """

    arrays: Callable[..., Arrays]
    types: Callable[..., Mapping[str, Any]]
    reference: Callable
    native: Sequence[Native]
    axes: Callable[..., sharding.Axes]
    item_ranks: Mapping[str, int]

    def bind(self, *operands, **params):
        """Calls the primitive on operands that agree on how they are spread over devices."""
        return super().bind(*self._agreeing(operands, params), **params)

    def def_jvp(self, rule: Callable) -> None:
        """Sets the JVP: `(operands, tangents, **params)` to `(results, tangents of the results)`."""
        ad.primitive_jvps[self] = rule

    def def_transpose(self, rule: Callable) -> None:
        """Sets the transpose: `(cotangents, *operands, **params)` to the operands' cotangents."""
        ad.primitive_transposes[self] = rule

    def why_not(self, platform: str, *operands: Any, **params: Any) -> str | None:
        """Why no native kernels of `platform` can run; `None` where some can.

        Without operands: why they can run on no operands. The reason comes from the last kernels in
        `native`, which refuse the fewest operands.
        """
        kernels = self._kernels(platform, *operands, **params)
        return kernels if isinstance(kernels, str) else None

    def compute(
        self, platform: str | None, *operands: jax.Array, implementation: tuple[str, ...], **params
    ) -> tuple[jax.Array, ...]:
        """The results, by the first implementation in the list that can run on `platform`.

        Implementations see one batch axis, into which all batch axes are merged.
        """
        arrays = self.arrays(**params)
        batch = self._batch_axes(arrays.operands[0], operands[0])
        merged = tuple(self._reshaped(arrays.operands, operands, (math.prod(batch),)))
        f = self._function(platform, implementation, *merged, **params)
        return tuple(self._reshaped(arrays.results, _as_tuple(f(*merged, **params)), batch))

    def on_xla(self, operands: Sequence[jax.Array], **params) -> Callable:
        """The function by the reference, which JAX can differentiate, for operands of these types."""
        f = functools.partial(self.compute, None)
        params = params | {"implementation": ("xla",)}
        split = self.explicit_split(list(map(jax.typeof, operands)), params)
        return functools.partial(f, **params) if split is None else split.shard_map(f, **params)

    def explicit_split(self, avals: Sequence[Any], params: dict) -> sharding.Split | None:
        """The split along the axes of the mesh that are in the types; `None` where there are none."""
        mesh = sharding.explicit_mesh(avals)
        if mesh is None:
            return None
        specs = [aval.sharding.spec for aval in avals]
        return sharding.split(self.named_axes(avals, params), [specs], mesh)

    def named_axes(self, avals: Sequence[Any], params: dict) -> sharding.Axes:
        """The names of the axes that operands and results can be split along."""
        return self.axes(self.arrays(**params), *avals, geometry=params["geometry"])

    def _agreeing(self, operands: Sequence[Any], params: dict) -> Sequence[Any]:
        """Resolves shardings in types that conflict, and lets all vary over the same devices."""
        avals = [jax.typeof(operand) for operand in operands]
        varying = frozenset().union(*map(sharding.varying, avals))
        operands = [
            _vary(operand, tuple(sorted(varying - sharding.varying(aval))))
            for operand, aval in zip(operands, avals, strict=True)
        ]
        split = self.explicit_split(avals, params)
        if split is None or all(map(_is_split, avals, split.operand_specs)):
            return operands
        return _resharded(
            operands, tuple(NamedSharding(split.mesh, s) for s in split.operand_specs)
        )

    def _function(self, platform: str | None, implementation: Sequence[str], *operands, **params):
        """The function of the first implementation in the list that can run."""
        if implementation[0] == "xla":
            return self.reference
        kernels = self._kernels(platform or "this platform", *operands, **params)
        if isinstance(kernels, Native):
            return kernels.compute
        if "xla" in implementation:
            return self.reference
        raise NotImplementedError(
            f'implementation="native" of {self.name} is not available: {kernels}. '
            "Pass implementation=None to run on XLA instead."
        )

    def _kernels(self, platform: str, *operands, **params) -> Native | str:
        """The first kernels of `platform` that can run; a reason where none can."""
        reason = f"there is no native kernel for {platform}"
        for kernels in self.native:
            if kernels.platform == platform:
                why_not = kernels.why_not(*operands, **params)
                if why_not is None:
                    return kernels
                reason = why_not
        return reason

    def _batch_axes(self, name: str, operand: jax.Array) -> tuple[int, ...]:
        return operand.shape[: operand.ndim - self.item_ranks.get(name, operand.ndim)]

    def _reshaped(
        self, names: Sequence[str], arrays: Sequence[jax.Array], batch: tuple[int, ...]
    ) -> Iterator[jax.Array]:
        """The arrays, with the batch axes `batch` where they have batch axes."""
        for name, array in zip(names, arrays, strict=True):
            rank = self.item_ranks.get(name)
            yield array.reshape(*batch, *array.shape[array.ndim - rank :]) if rank else array


def _is_split(aval: Any, spec: PartitionSpec) -> bool:
    return aval.sharding.spec == spec


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _resharded(operands: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[jax.Array]:
    """The operands, split by `shardings`: each names its mesh, so that a call needs no `jax.set_mesh`.

    Compiled where it is called outside `jit`, too: only a program for all devices of the mesh can
    split an array that is on one device.
    """
    return [
        operand
        if _is_split(jax.typeof(operand), sharding.spec)
        else jax.sharding.reshard(operand, sharding)
        for operand, sharding in zip(operands, shardings, strict=True)
    ]


def _vary(operand: Any, axes: tuple[str, ...]) -> Any:
    if not axes:
        return operand
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(operand, axes, to="varying")
    return jax.lax.pvary(operand, axes)  # type: ignore[attr-defined]  # before JAX 0.9


def define_primitive(
    name: str,
    *,
    arrays: Callable[..., Arrays],
    types: Callable[..., Mapping[str, Any]],
    reference: Callable,
    native: Sequence[Native],
    batching_rule: Callable,
    axes: Callable[..., sharding.Axes],
    item_ranks: Mapping[str, int] | None = None,
) -> OperatorPrimitive:
    """Defines the primitive `name`, which returns a tuple.

    `rules.define_derivatives` adds the derivatives, when all primitives of the operator are defined.

    Args:
      arrays: `(**params)` to the names of the operands and results.
      types: `(*primals, geometry)` to the type of every array of the operator, by name.
      reference: The primitive in `jax.numpy`; every platform can run it.
      native: The kernels that compute the primitive, for each platform in order of preference.
      batching_rule: `(primitive, operands, axes, **params)` to `(results, axes)`.
      axes: `(arrays, *avals, geometry)` to the names of the axes that arrays can be split along.
      item_ranks: For each array with batch axes, the number of its axes after the batch axes. The
        first operand has batch axes if any array has.
    """
    primitive = OperatorPrimitive(name)
    primitive.arrays, primitive.types = arrays, types
    primitive.reference, primitive.native = reference, native
    primitive.axes, primitive.item_ranks = axes, item_ranks or {}
    primitive.multiple_results = True
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(functools.partial(_abstract_eval, primitive))
    batching.primitive_batchers[primitive] = functools.partial(batching_rule, primitive)
    dispatch.prim_requires_devices_during_lowering.add(primitive)
    for platform in ("cpu", "cuda", None):
        rule = functools.partial(_lower, primitive, platform)
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _abstract_eval(primitive: OperatorPrimitive, *avals, **params) -> tuple:
    """The types of the results; the shardings of the operands decide the shardings of the results."""
    arrays = primitive.arrays(**params)
    split = primitive.explicit_split(avals, params)
    if split is None:
        types = primitive.types(*avals[: arrays.primals], geometry=params["geometry"])
        return tuple(types[name].update(weak_type=False) for name in arrays.results)
    whole = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals[: arrays.primals])
    types = primitive.types(*whole, geometry=params["geometry"])
    # `update` keeps the axes of an enclosing `shard_map` that the first operand, and so all, vary over.
    return tuple(
        avals[0].update(
            shape=types[name].shape,
            dtype=types[name].dtype,
            weak_type=False,
            sharding=NamedSharding(split.mesh, spec),
        )
        for name, spec in zip(arrays.results, split.result_specs, strict=True)
    )


def _lower(primitive: OperatorPrimitive, platform: str | None, context: Any, *values, **params):
    """Lowers to `compute`, or to what each device computes where there are several.

    Only on platforms with kernels is the program partitioned here: elsewhere the reference runs,
    which XLA can split, and TPUs have no `custom_partitioning` (https://github.com/jax-ml/jax/issues/38196).
    """
    avals = context.avals_in
    compute = functools.partial(primitive.compute, platform)
    if split := primitive.explicit_split(avals, params):
        # The results' types say how they are split, so that nothing is left for XLA to choose.
        call = split.shard_map(primitive.bind, **params)
    elif platform is not None and _is_split_by_xla(context.module_context):
        call = sharding.partitioned(compute, primitive.named_axes(avals, params), **params)
    else:
        call = functools.partial(compute, **params)
    return mlir.lower_fun(call, multiple_results=True)(context, *values)


def _is_split_by_xla(context: Any) -> bool:
    """Whether the program is for several devices, and shardings are not settled by a `shard_map`."""
    # An exported program cannot call back into Python to be split.
    devices = getattr(context.axis_context, "device_assignment", None) or ()
    return len(devices) > 1 and not context.lowering_parameters.for_export


def _as_tuple(results: Any) -> tuple[jax.Array, ...]:
    """The results of a function that returns one array, or a sequence of them."""
    return tuple(results) if isinstance(results, tuple | list) else (results,)


# ------------------------------------------------------------------- whole axes on automatic meshes


def gather(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The same array. Where XLA splits the program, `axes` are whole, and so are the cotangent's."""
    return _gather.bind(array, axes=axes)


def _gather_now(array: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """Outside `jit`."""
    if len(array.devices()) == 1:
        return array
    return xla.apply_primitive(_gather, array, axes=axes)


def _batched_gather(operands: Sequence[Any], dims: Sequence[int], *, axes: tuple[int, ...]):
    (array,), (dim,) = operands, dims
    return gather(array, tuple(axis + (axis >= dim) for axis in axes)), dim


def _lower_gather(platform: str | None, context: Any, value: Any, *, axes: tuple[int, ...]):
    if platform is None or not _is_split_by_xla(context.module_context):
        return [value]
    (aval,) = context.avals_in
    names = {"array": tuple(None if i in axes else f"axis{i}" for i in range(aval.ndim))}
    parts = {f"axis{i}": size for i, size in enumerate(aval.shape)}
    named = sharding.Axes(names, operands=("array",), results=("array",), parts=parts)
    call = sharding.partitioned(lambda array: (array,), named)
    return mlir.lower_fun(call, multiple_results=True)(context, value)


_gather = Primitive("jax_dcn_gather")
_gather.def_impl(_gather_now)
_gather.def_abstract_eval(lambda array, axes: array)
ad.deflinear2(_gather, lambda cotangent, array, axes: [gather(cotangent, axes)])
batching.primitive_batchers[_gather] = _batched_gather
dispatch.prim_requires_devices_during_lowering.add(_gather)
for _platform in ("cpu", "cuda", None):
    mlir.register_lowering(_gather, functools.partial(_lower_gather, _platform), platform=_platform)
