# SPDX-License-Identifier: MIT
"""An operator under JAX's transformations: the results are those of the plain program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn._src.operator import folding
from tests.laws.operator import Operator, assert_close
from tests.laws.table import every, every_operator

COPIES = 3


def close(actual, expected) -> None:
    assert_close(actual, expected, 1e-11, floor=1.0)


def stacked(operator: Operator) -> list[np.ndarray]:
    copies = (operator.small.arrays("float64", seed) for seed in range(COPIES))
    return [np.stack(arrays) for arrays in zip(*copies, strict=True)]


def loss_of_differentiable(operator: Operator, case, implementation, arrays):
    return operator.of_differentiable(operator.loss(case, implementation), arrays)


def orders(f, argnums, dots):
    """The second derivatives of `f` along `dots`, in each order of the modes."""
    gradient = jax.grad(f, argnums)
    product = lambda *values: sum(map(jnp.vdot, gradient(*values), dots))
    return [
        lambda *values: jax.jvp(gradient, values, dots)[1],
        jax.grad(product, argnums),
        jax.grad(lambda *values: jax.jvp(f, values, dots)[1], argnums),
    ]


@every_operator
def test_second_derivatives_match_reference(operator):
    case = operator.small
    arrays, dots = (case.arrays("float64", seed) for seed in (0, 3))
    values, dots = map(operator.differentiable, (arrays, dots))
    argnums, weights = range(len(values)), case.cotangent("float64")
    reference = operator.reference(case)
    plain = lambda *arrays: jnp.vdot(jnp.sin(reference(*arrays)), weights)
    forward, *_ = orders(operator.of_differentiable(plain, arrays), argnums, dots)
    expected = jax.jit(forward)(*values)
    for implementation in ("native", "xla"):
        f = loss_of_differentiable(operator, case, implementation, arrays)
        for order in orders(f, argnums, dots):
            close(jax.jit(order)(*values), expected)


@every_operator
def test_hessian_matches_differences_of_gradients(operator, implementation):
    case = operator.tiny
    arrays = operator.smooth(case.arrays("float64"))
    values, dots = (
        operator.differentiable(arrays),
        operator.differentiable(case.arrays("float64", 3)),
    )
    argnums, step = range(len(values)), 1e-6
    f = loss_of_differentiable(operator, case, implementation, arrays)
    hessian = jax.jit(jax.hessian(f, argnums))(*values)
    gradient = jax.jit(jax.grad(f, argnums))
    beside = (
        gradient(*(v + s * step * d for v, d in zip(values, dots, strict=True))) for s in (1, -1)
    )
    differences = jax.tree.map(lambda ahead, behind: (ahead - behind) / (2 * step), *beside)
    products = tuple(
        sum(jnp.tensordot(block, dot, dot.ndim) for block, dot in zip(row, dots, strict=True))
        for row in hessian
    )
    assert_close(products, differences, 1e-7, floor=1.0)


@every_operator
def test_vjp_can_be_transposed_again(operator, implementation):
    case = operator.small
    arrays, dots = (case.arrays("float64", seed) for seed in (0, 3))
    values, dots = map(operator.differentiable, (arrays, dots))
    f = operator.of_differentiable(case.function(implementation), arrays)
    y, vjp = jax.vjp(f, *values)
    (y_dot,) = jax.jit(jax.linear_transpose(vjp, y))(dots)
    close(y_dot, jax.jit(lambda *values: jax.jvp(f, values, dots)[1])(*values))


@every_operator
def test_linearize_equals_jvp(operator):
    case = operator.small
    arrays, dots = (case.arrays("float64", seed) for seed in (0, 4))
    values, dots = map(operator.differentiable, (arrays, dots))
    f = operator.of_differentiable(case.function(), arrays)
    y, f_jvp = jax.linearize(f, *values)
    close((y, f_jvp(*dots)), jax.jvp(f, values, dots))


def mapped_arguments(operator: Operator):
    # The rule that folds the mapped axis is one for all implementations.
    yield from ((names, "native") for names in operator.mapped)
    yield operator.mapped[-1], "xla"


@every(mapped_arguments, "names, implementation")
def test_vmap_equals_loop(operator, names, implementation):
    in_axes = tuple(0 if name in names.split() else None for name in operator.arguments)
    single, batches = operator.small.arrays("float64"), stacked(operator)
    arrays = [b if axis == 0 else s for b, s, axis in zip(batches, single, in_axes, strict=True)]
    dots, derivatives = (
        operator.small.arrays("float64", seed=9),
        operator.derivatives(operator.small.function(implementation)),
    )
    everything = lambda *arrays: derivatives(arrays, dots, operator.small.cotangent("float64"))
    one = jax.jit(everything)
    pick = lambda i: (a[i] if axis == 0 else a for a, axis in zip(arrays, in_axes, strict=True))
    looped = [one(*pick(i)) for i in range(COPIES)]
    mapped = jax.jit(jax.vmap(everything, in_axes))(*arrays)
    close(mapped, jax.tree.map(lambda *a: jnp.stack(a), *looped))


@every(lambda operator: operator.mapped, "names")
def test_vmap_over_nothing_gives_nothing(operator, names):
    in_axes = tuple(0 if name in names.split() else None for name in operator.arguments)
    single = operator.small.arrays("float64")
    arrays = [
        np.empty((0, *a.shape), a.dtype) if axis == 0 else a
        for a, axis in zip(single, in_axes, strict=True)
    ]
    derivatives = operator.derivatives(operator.small.function())
    everything = lambda *arrays: derivatives(arrays, single, operator.small.cotangent("float64"))
    mapped = jax.eval_shape(jax.vmap(everything, in_axes), *arrays)
    one = jax.eval_shape(everything, *single)
    empty = jax.tree.map(lambda a: np.empty((0, *a.shape), a.dtype), one)
    types = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype.name), tree)
    assert types(mapped) == types(empty)
    assert_close(jax.vmap(operator.small.function(), in_axes)(*arrays), empty[0])


@every(lambda operator: operator.mapped[:-1], "names")
def test_vmap_as_a_loop_equals_one_call(operator, names, monkeypatch):
    """Where copies of arrays that are not mapped would be large, `vmap` is a loop."""
    in_axes = tuple(0 if name in names.split() else None for name in operator.arguments)
    pairs = zip(stacked(operator), operator.small.arrays("float64"), in_axes, strict=True)
    arrays = [batch if axis == 0 else single for batch, single, axis in pairs]
    dots, grad_y = operator.small.arrays("float64", seed=9), operator.small.cotangent("float64")
    derivatives = operator.derivatives(operator.small.function("native"))

    def mapped(*arrays):
        return jax.vmap(lambda *arrays: derivatives(arrays, dots, grad_y), in_axes)(*arrays)

    def summed(*values):
        g = operator.of_differentiable(
            lambda *arrays: jax.vmap(operator.small.function("native"), in_axes)(*arrays), arrays
        )
        return (g(*values) ** 2).sum()

    def everything(*arrays):
        values = operator.differentiable(arrays)
        return mapped(*arrays), jax.grad(summed, range(len(values)))(*values)

    one_call = jax.jit(everything)(*arrays)
    monkeypatch.setattr(folding, "_COPY_BYTES", 0)
    close(jax.jit(lambda *arrays: everything(*arrays))(*arrays), one_call)


@pytest.mark.parametrize("negative", [False, True])
@every_operator
def test_vmap_takes_any_axis(operator, negative):
    arrays = stacked(operator)
    axes = tuple((2 * i + 1) % a.ndim - negative * a.ndim for i, a in enumerate(arrays))
    moved = [np.moveaxis(a, 0, axis) for a, axis in zip(arrays, axes, strict=True)]
    f = operator.small.function()
    close(jax.jit(jax.vmap(f, axes))(*moved), jax.jit(jax.vmap(f))(*arrays))


@every_operator
def test_nested_vmap_equals_loops(operator, implementation):
    firsts, seconds, *_ = stacked(operator)
    rest = operator.small.arrays("float64")[2:]
    f = jax.jit(lambda *both: operator.small.function(implementation)(*both, *rest))
    outer = jax.jit(jax.vmap(jax.vmap(f, (0, None)), (None, 0)))(firsts, seconds)
    looped = jnp.stack([jnp.stack([f(first, second) for first in firsts]) for second in seconds])
    close(outer, looped)


@every_operator
def test_checkpoint_scan_and_jit_change_nothing(operator):
    arrays = operator.small.arrays("float64")
    values, loss = operator.differentiable(arrays), operator.loss(operator.small, "native")
    f, argnums = operator.of_differentiable(loss, arrays), range(len(values))
    expected = jax.grad(f, argnums)(*values)
    close(jax.jit(jax.grad(f, argnums))(*values), expected)
    close(jax.jit(jax.grad(jax.checkpoint(f), argnums))(*values), expected)

    def scanned(*values):
        pairs = [jnp.stack([a, a]) for a in values]
        return jax.lax.scan(lambda total, one: (total + f(*one), None), 0.0, pairs)[0]

    doubled = jax.tree.map(lambda gradient: 2 * gradient, expected)
    close(jax.jit(jax.grad(scanned, argnums))(*values), doubled)
