# SPDX-License-Identifier: MIT
"""Derivative rules that are the same for every operator.

An operator `f` has three primitives. The first operands of all of them, the primals, are what
derivatives are taken at, and a parameter `wrt` names the operands that they are taken for:

    forward     (*primals, *rest)          -> y
    jvp         (*primals, *tangents)      -> tangent of y, linear in the tangents
    backward    (*primals, grad_y)         -> cotangents, linear in grad_y: the transpose of `jvp`

The derivatives of the last two in the primals are second order, and come from the reference.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive

from jax_dcn._primitives import _define


def nonzero(names: Iterable, tangents: Iterable) -> tuple[tuple, list]:
    """The names of the operands that have a tangent, and these tangents."""
    pairs = [(n, t) for n, t in zip(names, tangents, strict=True) if type(t) is not _define.Zero]
    return tuple(name for name, _ in pairs), [tangent for _, tangent in pairs]


def jvp_of_linear(
    primitive: Primitive,
    reference: Callable,
    primal_count: int,
    primals: Sequence,
    tangents: Sequence,
    *,
    implementation: tuple[str, ...],
    **params,
) -> tuple[Any, Any]:
    """JVP of a primitive that is linear in its operands after the primals."""
    result = primitive.bind(*primals, implementation=implementation, **params)
    indices, dots = nonzero(range(len(primals)), tangents)
    if min(indices) >= primal_count:
        linear = map(_define.instantiate_zeros, tangents[primal_count:])
        result_dot = primitive.bind(
            *primals[:primal_count], *linear, implementation=implementation, **params
        )
        return result, result_dot

    def f(*active):
        operands = list(primals)
        for index, operand in zip(indices, active, strict=True):
            operands[index] = operand
        return reference(*operands, **params)

    return result, jax.jvp(f, tuple(primals[index] for index in indices), tuple(dots))[1]


def transpose_of_jvp(
    backward_p: Primitive, primal_count: int, grad_y, *operands, wrt: tuple[str, ...], **params
) -> list:
    """One call of the fused backward pass for the cotangents that are asked for."""
    primals, dots = operands[:primal_count], operands[primal_count:]
    asked = tuple(n for n, d in zip(wrt, dots, strict=True) if _define.is_undefined_primal(d))
    if type(grad_y) is _define.Zero:
        return [None] * primal_count + [_define.Zero(d.aval) for d in dots]
    grads = backward_p.bind(*primals, grad_y, wrt=asked, **params)
    by_name = dict(zip(asked, grads, strict=True))
    return [None] * primal_count + [by_name.get(name) for name in wrt]


def transpose_of_backward(
    jvp_p: Primitive, primal_count: int, cotangents, *operands, wrt: tuple[str, ...], **params
) -> list:
    """The tangent again, along the cotangents that there are."""
    wrt, dots = nonzero(wrt, cotangents)
    if not dots:
        return [None] * primal_count + [_define.Zero(operands[-1].aval)]
    primals = operands[:primal_count]
    return [None] * primal_count + [jvp_p.bind(*primals, *dots, wrt=wrt, **params)]
