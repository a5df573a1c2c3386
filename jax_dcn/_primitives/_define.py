# SPDX-License-Identifier: MIT
"""Makes a JAX primitive of its rules: the one place that knows JAX's extension interface."""

import functools
from collections.abc import Callable

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from jax_dcn import _native

# What JAX's rules receive in place of an operand, for the files of the operators.
is_undefined_primal = ad.is_undefined_primal
instantiate_zeros = ad.instantiate_zeros
Zero = ad.Zero


def define_primitive(
    name: str,
    *,
    abstract_eval: Callable,
    reference: Callable,
    native: Callable,
    jvp: Callable,
    transpose: Callable | None,
    batching_rule: Callable,
    multiple_results: bool = False,
) -> Primitive:
    """Defines the primitive `name` by its rules.

    Args:
      abstract_eval: `(*avals, **params)` to the result's aval, or a tuple of them.
      reference: The operator in `jax.numpy`; what every platform can run.
      native: The operator as a call of the kernel of the same name.
      jvp: `(primals, tangents, **params)` to `(result, tangent of the result)`.
      transpose: `(cotangent, *operands, **params)` to the operands' cotangents; `None` where the
        operator is not linear in any operand.
      batching_rule: `(operands, axes, **params)` to `(result, axis)`.
      multiple_results: Whether the result is a tuple.

    Every primitive has a parameter `implementation`, the names to try in order when it is lowered.
    """
    primitive = Primitive(name)
    primitive.multiple_results = multiple_results
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(
        lambda *avals, implementation, **params: abstract_eval(*avals, **params)
    )
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batching_rule
    for platform in ("cpu", "cuda", None):
        lowered = functools.partial(_first_available, name, platform, native, reference)
        rule = mlir.lower_fun(lowered, multiple_results=multiple_results)
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _first_available(
    name: str,
    platform: str | None,
    native: Callable,
    reference: Callable,
    *operands: jax.Array,
    implementation: tuple[str, ...],
    **params,
):
    """Calls the first implementation in the list that can run on the platform lowered for."""
    reason = _native.why_not(platform or "this platform", operands[0].dtype)
    if implementation[0] == "xla" or (reason and "xla" in implementation):
        return reference(*operands, **params)
    if reason:
        raise NotImplementedError(
            f'implementation="native" of {name} is not available: {reason}. '
            "Pass implementation=None to run on XLA instead."
        )
    return native(*operands, **params)
