# SPDX-License-Identifier: MIT
"""What an operator computes: values, tangents and gradients, each against an independent truth."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jax_dcn._src.operator import blockwise
from tests.laws.operator import Case, Operator, assert_close
from tests.laws.table import every, every_operator


@functools.cache
def program(operator: Operator, case: Case, implementation: str):
    """Value, tangent and gradients; compiled once for each dtype."""
    reference = implementation == "reference"
    f = operator.reference(case) if reference else case.function(implementation)
    return jax.jit(operator.derivatives(f))


@functools.cache
def results(operator: Operator, case: Case, implementation: str, dtype: str):
    arrays, dots = (case.arrays(dtype, seed) for seed in (0, 7))
    return program(operator, case, implementation)(arrays, dots, case.cotangent(dtype))


def runs(operator: Operator):
    yield from ((case, "native", "float64") for case in operator.cases)
    yield from ((case, "native", "float32") for case in operator.float32_cases)
    yield from ((case, "xla", "float64") for case in operator.xla_cases)


@every(runs, "case, implementation, dtype")
def test_value_tangent_and_gradients_match_reference(operator, case, implementation, dtype):
    """Plain `jax.numpy`, differentiated by JAX: none of the primitives' rules take part."""
    expected = results(operator, case, "reference", dtype)
    assert_close(results(operator, case, implementation, dtype), expected, dtype)


@every(
    lambda operator: (run for run in runs(operator) if run[2] == "float64"),
    "case, implementation, dtype",
)
def test_transpose_is_the_adjoint(operator, case, implementation, dtype):
    _, y_dot, grads = results(operator, case, implementation, dtype)
    dots, grad_y = operator.differentiable(case.arrays(dtype, 7)), case.cotangent(dtype)
    products = jax.tree.map(jnp.vdot, dots, grads)
    size = max(1.0, float(jnp.linalg.norm(y_dot.ravel()) * jnp.linalg.norm(grad_y.ravel())))
    assert abs(jnp.vdot(y_dot, grad_y) - sum(jax.tree.leaves(products))) <= 1e-12 * size


@every(lambda operator: operator.loop_cases, "case")
def test_value_matches_plain_loops(operator, case, implementation):
    arrays = case.arrays("float64")
    expected = operator.loops(case, *arrays)
    assert_close(case.function(implementation)(*arrays), expected)


@every(lambda operator: operator.difference_cases, "case")
def test_gradients_match_finite_differences(operator, case):
    arrays = operator.smooth(case.arrays("float64"))
    f = jax.jit(operator.of_differentiable(case.function("native"), arrays))
    values = operator.differentiable(arrays)
    jax.test_util.check_grads(f, values, order=1, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def some_of_the_arguments(operator: Operator):
    singles = [(i,) for i in operator.moving]
    return [(wrt,) for wrt in (*singles, (operator.moving[0], operator.moving[-1]))]


@every(some_of_the_arguments, "wrt")
def test_each_derivative_alone_equals_its_part_of_all(operator, wrt, implementation):
    case = operator.small
    arrays, dots = (case.arrays("float64", seed) for seed in (0, 7))
    f = case.function(implementation)

    @jax.jit
    def alone(arrays, dots, grad_y):
        g = lambda *values: f(*replaced(arrays, values))
        values = [arrays[i] for i in wrt]
        return jax.jvp(g, values, [dots[i] for i in wrt])[1], jax.vjp(g, *values)[1](grad_y)

    def replaced(arrays, values):
        named = dict(zip(wrt, values, strict=True))
        return [named.get(i, array) for i, array in enumerate(arrays)]

    none = [np.zeros_like(dot) for dot in dots]
    some = tuple(replaced(none, [dots[i] for i in wrt]))
    everything = program(operator, case, implementation)
    _, y_dot, grads = everything(arrays, some, case.cotangent("float64"))
    parts = tuple(grads[operator.moving.index(i)] for i in wrt)
    assert_close(alone(arrays, dots, case.cotangent("float64")), (y_dot, parts))


# The reference rounds once, at the end, and so must the kernels: where a sum in float32 lies close to
# the middle of two 16-bit numbers the two may round apart, and sums in float32 themselves differ.
HALF_MULTIPLE = 2.0


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@every(lambda operator: operator.half_cases, "case")
def test_error_in_16_bits_is_that_of_rounding(operator, case, half):
    narrow = [operator.half(case.arrays("float32", seed), half) for seed in (0, 7)]
    operands = (*narrow, case.cotangent("float32").astype(half))
    wide = jax.tree.map(lambda array: array.astype("float64"), operands)
    exact, expected = (program(operator, case, "xla")(*o) for o in (wide, operands))
    actual = program(operator, case, "native")(*operands)
    leaves = zip(*map(jax.tree.leaves, (exact, expected, actual)), strict=True)
    for exact_leaf, expected_leaf, actual_leaf in leaves:
        assert actual_leaf.dtype == expected_leaf.dtype
        error = jnp.max(jnp.abs(actual_leaf.astype("float64") - exact_leaf))
        own_error = jnp.max(jnp.abs(expected_leaf.astype("float64") - exact_leaf))
        assert error <= HALF_MULTIPLE * own_error


@pytest.mark.parametrize("blocks", ["one", "many"])
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@every_operator
def test_sums_in_16_bits_round_once(operator, half, blocks, implementation, monkeypatch):
    """Gradients sum the samples of an image, which all read the same pixels."""
    if blocks == "many":
        if implementation == "native":
            pytest.skip("only plain JAX computes in blocks")
        monkeypatch.setattr(blockwise, "_BLOCK_BYTES", 2**10)
    case = operator.crowded
    arrays, dots = (
        operator.half(operator.crowd(case.arrays("float32", seed)), half) for seed in (0, 7)
    )
    operands = (arrays, dots, np.abs(case.cotangent("float32")).astype(half))
    wide = jax.tree.map(lambda array: array.astype("float64"), operands)
    exact = program(operator, case, "native")(*wide)
    actual = jax.jit(operator.derivatives(case.function(implementation)))(*operands)
    for exact_leaf, actual_leaf in zip(*map(jax.tree.leaves, (exact, actual)), strict=True):
        rounded = exact_leaf.astype(actual_leaf.dtype).astype("float64")
        error = jnp.max(jnp.abs(actual_leaf.astype("float64") - exact_leaf))
        bound = HALF_MULTIPLE * jnp.max(jnp.abs(rounded - exact_leaf))
        assert error <= max(bound, 1e-5 * jnp.max(jnp.abs(exact_leaf)))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@every_operator
def test_narrow_positions_and_masks_are_read_in_float32(operator, half, implementation):
    case = operator.small
    arrays = [array.astype(half) for array in case.arrays("float32")]
    wide = [
        array.astype("float32") if name in operator.wide else array
        for name, array in zip(operator.arguments, arrays, strict=True)
    ]
    f = case.function(implementation)
    narrow = f(*arrays)
    assert narrow.dtype == half and (narrow == f(*wide)).all()


@every(lambda operator: operator.constant, "name")
def test_gradient_of_a_constant_argument_is_zero(operator, name):
    arrays, index = operator.small.arrays("float64"), operator.arguments.index(name)
    f = lambda *arrays: operator.small.function()(*arrays).sum()
    gradient = jax.grad(f, index)(*arrays)
    assert gradient.shape == arrays[index].shape and not np.any(gradient)
