# SPDX-License-Identifier: MIT
"""The derivatives of an operator's primitives, which are the same for every operator."""

import functools
from collections.abc import Iterable, Sequence

import jax

from jax_dcn._src.operator import extension
from jax_dcn._src.operator.extension import OperatorPrimitive


def define_derivatives(
    forward_p: OperatorPrimitive, jvp_p: OperatorPrimitive, backward_p: OperatorPrimitive
) -> None:
    """Closes the three primitives of an operator (`signature.py`) under differentiation.

        jvp of forward = jvp      transpose of jvp = backward      transpose of backward = jvp

    `jvp` and `backward` are linear in the operands after the primals. Their derivatives in the
    primals are second order, and are taken of the reference.
    """
    forward_p.def_jvp(functools.partial(_jvp_of_forward, forward_p, jvp_p))
    jvp_p.def_jvp(functools.partial(_jvp_of_linear, jvp_p))
    jvp_p.def_transpose(functools.partial(_transpose_of_jvp, backward_p))
    backward_p.def_jvp(functools.partial(_jvp_of_linear, backward_p))
    backward_p.def_transpose(functools.partial(_transpose_of_backward, jvp_p))


def _jvp_of_forward(
    forward_p: OperatorPrimitive, jvp_p: OperatorPrimitive, operands, tangents, **params
):
    """The JVP rule of `forward_p`: one call of `jvp_p`, for the operands that have a tangent."""
    arrays = forward_p.arrays(**params)
    y = forward_p.bind(*operands, **params)
    wrt, dots = _nonzero(arrays.operands, tangents)
    return y, jvp_p.bind(*operands[: arrays.primals], *dots, wrt=wrt, **params)


def _jvp_of_linear(
    primitive: OperatorPrimitive, operands, tangents, **params
) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
    """The JVP rule of a primitive that is linear in its operands after the primals."""
    results = primitive.bind(*operands, **params)
    count = primitive.arrays(**params).primals
    indices, dots = _nonzero(range(len(operands)), tangents)
    if min(indices) >= count:  # no primal has a tangent
        linear = map(extension.instantiate_zeros, tangents[count:])
        return results, primitive.bind(*operands[:count], *linear, **params)

    reference = primitive.on_xla(operands, **params)

    def f(*active):
        values = dict(enumerate(operands)) | dict(zip(indices, active, strict=True))
        return reference(*values.values())

    return results, jax.jvp(f, tuple(operands[i] for i in indices), tuple(dots))[1]


def _transpose_of_jvp(backward_p: OperatorPrimitive, cotangents, *operands, wrt, **params):
    """The transpose rule of the JVP: one call of `backward_p`, for the cotangents asked for."""
    (grad_y,) = cotangents
    count = len(operands) - len(wrt)
    primals, dots = operands[:count], operands[count:]
    if type(grad_y) is extension.Zero:
        return [None] * count + [extension.Zero(dot.aval) for dot in dots]
    unknown = map(extension.is_undefined_primal, dots)
    asked = tuple(name for name, is_asked in zip(wrt, unknown, strict=True) if is_asked)
    grads = backward_p.bind(*primals, grad_y, wrt=asked, **params)
    by_name = dict(zip(asked, grads, strict=True))
    return [None] * count + [by_name.get(name) for name in wrt]


def _transpose_of_backward(jvp_p: OperatorPrimitive, cotangents, *operands, wrt, **params):
    """The transpose rule of the backward pass: one call of `jvp_p`, along the nonzero cotangents."""
    *primals, grad_y = operands
    wrt, dots = _nonzero(wrt, cotangents)
    if not dots:
        return [None] * len(primals) + [extension.Zero(grad_y.aval)]
    return [None] * len(primals) + list(jvp_p.bind(*primals, *dots, wrt=wrt, **params))


def _nonzero(names: Iterable, tangents: Iterable) -> tuple[tuple, list]:
    """The names of the operands whose tangent is not zero, and these tangents."""
    pairs = [(n, t) for n, t in zip(names, tangents, strict=True) if type(t) is not extension.Zero]
    return tuple(name for name, _ in pairs), [tangent for _, tangent in pairs]
