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

from jax_dcn import _native
from jax_dcn._primitives import _sharding

# What JAX's rules receive in place of an operand, for the files of the operators.
is_undefined_primal = ad.is_undefined_primal
instantiate_zeros = ad.instantiate_zeros
Zero = ad.Zero
Axes = _sharding.Axes


class _Operator(Primitive):
    """A primitive whose operands are made to agree on how they are spread over devices."""

    axes: Callable[..., _sharding.Axes]

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

    def explicit_split(self, avals: Sequence[Any], params: dict) -> _sharding.Split | None:
        """The split along the axes of the mesh that are in the types; `None` where there are none."""
        mesh = _sharding.explicit_mesh(avals)
        if mesh is None:
            return None
        specs = [aval.sharding.spec for aval in avals]
        return _sharding.split(self.axes(*avals, **params), [specs], mesh.shape)


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
    axes: Callable[..., _sharding.Axes],
    multiple_results: bool = False,
) -> Primitive:
    """Defines the primitive `name` by its rules.

    Args:
      abstract_eval: `(*avals, **params)` to the result's aval, or a tuple of them.
      reference: The operator in `jax.numpy`; what every platform can run.
      native: The operator by kernels of ours, for each platform that has them.
      jvp: `(primals, tangents, **params)` to `(result, tangent of the result)`.
      transpose: `(cotangent, *operands, **params)` to the operands' cotangents; `None` where the
        operator is not linear in any operand.
      batching_rule: `(operands, axes, **params)` to `(result, axis)`.
      axes: `(*avals, **params)` to the names of the axes that the operator can be split along.
      multiple_results: Whether the result is a tuple.

    Every primitive has a parameter `implementation`, the names to try in order when it is lowered.
    """
    primitive = _Operator(name)
    primitive.axes = lambda *avals, implementation, **params: axes(*avals, **params)
    primitive.multiple_results = multiple_results
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
        rule = functools.partial(_lower, primitive, f)
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _typed(primitive: _Operator, abstract_eval: Callable, *avals, implementation, **params):
    """The results' avals, with the shardings that follow from those of the operands."""
    split = primitive.explicit_split(avals, params | {"implementation": implementation})
    if split is None:
        results = _tuple_of(abstract_eval, *avals, **params)
    else:
        unsplit = (aval.update(sharding=None) for aval in avals)
        mesh = _sharding.explicit_mesh(avals)
        results = tuple(
            aval.update(sharding=NamedSharding(mesh, spec))
            for aval, spec in zip(
                _tuple_of(abstract_eval, *unsplit, **params), split.result_specs, strict=True
            )
        )
    return results if primitive.multiple_results else results[0]


def _lower(primitive: _Operator, f: Callable, context: Any, *values, **params):
    """Lowers to `f`, or to what each device computes of it where there are several."""
    avals = context.avals_in
    if split := primitive.explicit_split(avals, params):
        # The results' types say how they are split, so that nothing is left for XLA to choose.
        call = split.shard_map(avals, functools.partial(_tuple_of, primitive.bind), **params)
    elif _is_split_by_xla(context.module_context):
        shapes = [[aval.shape for aval in avals] for avals in (avals, context.avals_out)]
        axes = primitive.axes(*avals, **params)
        call = _sharding.partitioned(functools.partial(_tuple_of, f), axes, shapes, **params)
    else:
        call = functools.partial(_tuple_of, f, **params)
    return mlir.lower_fun(call, multiple_results=True)(context, *values)


def _is_split_by_xla(context: Any) -> bool:
    """Whether the program is for several devices, and shardings are not settled by a `shard_map`."""
    # An exported program cannot call back into Python to be split.
    devices = getattr(context.axis_context, "device_assignment", None) or ()
    return len(devices) > 1 and not context.lowering_parameters.for_export


def _tuple_of(f: Callable, *operands, **params) -> tuple:
    results = f(*operands, **params)
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _first_available(
    name: str,
    platform: str | None,
    native: Callable | None,
    reference: Callable,
    *operands: jax.Array,
    implementation: tuple[str, ...],
    **params,
):
    """Calls the first implementation in the list that can run on the platform lowered for."""
    reason = _native.why_not(platform or "this platform", operands[0].dtype)
    if native is None:
        reason = reason or f"it has no kernel for {platform}"
    if platform == "cuda" and any(map(export.is_symbolic_dim, operands[0].shape)):
        reason = reason or "on cuda it needs a batch of known size"
    if implementation[0] == "xla" or (reason and "xla" in implementation):
        return reference(*operands, **params)
    if native is None or reason:
        raise NotImplementedError(
            f'implementation="native" of {name} is not available: {reason}. '
            "Pass implementation=None to run on XLA instead."
        )
    return native(*operands, **params)
