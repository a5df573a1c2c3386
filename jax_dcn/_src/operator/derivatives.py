# SPDX-License-Identifier: MIT
"""First derivatives of a reference in the operands that are named, by JAX itself."""

from collections.abc import Callable, Mapping, Sequence

import jax


def jvp(
    f: Callable[..., jax.Array],
    operands: Mapping[str, jax.Array],
    wrt: Sequence[str],
    tangents: Sequence[jax.Array],
) -> jax.Array:
    """The tangent of `f(**operands)` along `tangents`, one for each operand named in `wrt`."""
    g, primals = _function_of(wrt, f, operands)
    return jax.jvp(g, primals, tuple(tangents))[1]


def vjp(
    f: Callable[..., jax.Array],
    operands: Mapping[str, jax.Array],
    wrt: Sequence[str],
    grad_y: jax.Array,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt` for the cotangent `grad_y` of the result."""
    g, primals = _function_of(wrt, f, operands)
    return jax.vjp(g, *primals)[1](grad_y)


def _function_of(
    wrt: Sequence[str], f: Callable[..., jax.Array], operands: Mapping[str, jax.Array]
) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """`f` as a function of the operands named in `wrt` alone, and the values of these operands."""

    def g(*values: jax.Array) -> jax.Array:
        return f(**{**operands, **dict(zip(wrt, values, strict=True))})

    return g, tuple(operands[name] for name in wrt)
