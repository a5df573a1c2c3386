# SPDX-License-Identifier: MIT
"""Makes a JAX primitive of its rules: the one place that knows JAX's extension interface."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export

# Private: the set of primitives whose lowering must know the devices, as that of
# `custom_partitioning` does; there is no public way to say so (0.8.1 to 0.12.0).
from jax._src import dispatch
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import NamedSharding

from jax_dcn._src.operator import libraries, sharding

# What JAX's rules receive in place of an operand, for the files of the operators.
is_undefined_primal = ad.is_undefined_primal
instantiate_zeros = ad.instantiate_zeros
Zero = ad.Zero
Axes = sharding.Axes


class _Operator(Primitive):
    """A primitive whose operands are made to agree on how they are spread over devices."""

    axes: Callable[..., sharding.Axes]

    def bind(self, *operands, **params):
        return super().bind(*self._agreeing(operands, params), **params)

    def _agreeing(self, operands: Sequence[Any], params: dict) -> Sequence[Any]:
        """Resolves shardings in types that conflict, and lets all vary over the same devices."""
        avals = [jax.typeof(operand) for operand in operands]
        varying = frozenset().union(*map(_varying, avals))
        operands = [
            _vary(operand, tuple(sorted(varying - _varying(aval))))
            for operand, aval in zip(operands, avals, strict=True)
        ]
        split = self.explicit_split(avals, params)
        if split is None:
            return operands
        return [
            jax.sharding.reshard(operand, spec) if aval.sharding.spec != spec else operand
            for operand, aval, spec in zip(operands, avals, split.operand_specs, strict=True)
        ]

    def explicit_split(self, avals: Sequence[Any], params: dict) -> sharding.Split | None:
        """The split along the axes of the mesh that are in the types; `None` where there are none."""
        mesh = sharding.explicit_mesh(avals)
        if mesh is None:
            return None
        specs = [aval.sharding.spec for aval in avals]
        return sharding.split(self.axes(*avals, **params), [specs], mesh.shape)


def _varying(aval: Any) -> frozenset[str]:
    """The axes of an enclosing `shard_map` that values may differ along."""
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return aval.vma  # before JAX 0.10


def _vary(operand: Any, axes: tuple[str, ...]) -> Any:
    if not axes:
        return operand
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(operand, axes, to="varying")
    return jax.lax.pvary(operand, axes)  # type: ignore[attr-defined]  # before JAX 0.9


def define_primitive(
    name: str,
    *,
    abstract_eval: Callable,
    reference: Callable,
    native: Mapping[str, Callable],
    jvp: Callable,
    transpose: Callable | None,
    batching_rule: Callable,
    axes: Callable[..., sharding.Axes],
) -> Primitive:
    """Defines the primitive `name`, which returns a tuple, by its rules.

    Args:
      abstract_eval: `(*avals, **params)` to the avals of the results.
      reference: The operator in `jax.numpy`; what every platform can run.
      native: The operator by kernels of ours, for each platform that has them.
      jvp: `(primals, tangents, **params)` to `(results, tangents of the results)`.
      transpose: `(cotangents, *operands, **params)` to the operands' cotangents; `None` where the
        operator is not linear in any operand.
      batching_rule: `(operands, axes, **params)` to `(results, axes)`.
      axes: `(*avals, **params)` to the names of the axes that the operator can be split along.

    Every primitive has a parameter `implementation`, the names to try in order when it is lowered.
    """
    primitive = _Operator(name)
    primitive.axes = lambda *avals, implementation, **params: axes(*avals, **params)
    primitive.multiple_results = True
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(functools.partial(_typed, primitive, abstract_eval))
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batching_rule
    dispatch.prim_requires_devices_during_lowering.add(primitive)
    for platform in ("cpu", "cuda", None):
        kernels = native.get(platform or "")
        f = functools.partial(_first_available, name, platform, kernels, reference)
        rule = functools.partial(_lower, primitive, f, platform is not None)
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _typed(
    primitive: _Operator, abstract_eval: Callable, *avals, implementation, **params
) -> tuple:
    """The results' avals, with the shardings that follow from those of the operands."""
    split = primitive.explicit_split(avals, params | {"implementation": implementation})
    if split is None:
        return abstract_eval(*avals, **params)
    results = abstract_eval(*(aval.update(sharding=None) for aval in avals), **params)
    mesh = sharding.explicit_mesh(avals)
    return tuple(
        aval.update(sharding=NamedSharding(mesh, spec))
        for aval, spec in zip(results, split.result_specs, strict=True)
    )


def _lower(primitive: _Operator, f: Callable, partitions: bool, context: Any, *values, **params):
    """Lowers to `f`, or to what each device computes of it where there are several.

    Only on platforms with kernels are programs partitioned by us: elsewhere `f` is the reference,
    which XLA can split, and TPUs have no `custom_partitioning` (https://github.com/jax-ml/jax/issues/38196).
    """
    avals = context.avals_in
    if split := primitive.explicit_split(avals, params):
        # The results' types say how they are split, so that nothing is left for XLA to choose.
        call = split.shard_map(avals, primitive.bind, **params)
    elif partitions and _is_split_by_xla(context.module_context):
        shapes = [[aval.shape for aval in avals] for avals in (avals, context.avals_out)]
        axes = primitive.axes(*avals, **params)
        call = sharding.partitioned(f, axes, shapes, **params)
    else:
        call = functools.partial(f, **params)
    return mlir.lower_fun(call, multiple_results=True)(context, *values)


def _is_split_by_xla(context: Any) -> bool:
    """Whether the program is for several devices, and shardings are not settled by a `shard_map`."""
    # An exported program cannot call back into Python to be split.
    devices = getattr(context.axis_context, "device_assignment", None) or ()
    return len(devices) > 1 and not context.lowering_parameters.for_export


def _first_available(
    name: str,
    platform: str | None,
    native: Callable | None,
    reference: Callable,
    *operands: jax.Array,
    implementation: tuple[str, ...],
    **params,
) -> tuple[jax.Array, ...]:
    """Calls the first implementation in the list that can run on the platform lowered for."""
    reason = libraries.why_not(platform or "this platform", operands[0].dtype)
    if native is None:
        reason = reason or f"it has no kernel for {platform}"
    if platform == "cuda" and any(map(export.is_symbolic_dim, operands[0].shape)):
        reason = reason or "on cuda it needs a batch of known size"
    if implementation[0] == "xla" or (reason and "xla" in implementation):
        return as_tuple(reference(*operands, **params))
    if native is None or reason:
        raise NotImplementedError(
            f'implementation="native" of {name} is not available: {reason}. '
            "Pass implementation=None to run on XLA instead."
        )
    return as_tuple(native(*operands, **params))


def as_tuple(results: Any) -> tuple[jax.Array, ...]:
    """The results of a function that returns one array, or a sequence of them."""
    return tuple(results) if isinstance(results, tuple | list) else (results,)
