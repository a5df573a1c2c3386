# SPDX-License-Identifier: MIT
"""Positions that are NaN, infinite or huge affect their own sample, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.operator import Operator, Spot, assert_close
from tests.laws.table import every

FAR = 1e4
HUGE = [np.inf, -np.inf, 1e30, -1e30, 2.0**31, 2.0**63, -(2.0**63)]


@functools.cache
def program(operator: Operator, case, implementation: str):
    @jax.jit  # Inside, the values of the arrays are unknown.
    def results(arrays):
        f = operator.of_differentiable(case.function(implementation), arrays)
        y, vjp = jax.vjp(f, *operator.differentiable(arrays))
        names = (operator.arguments[i] for i in operator.moving)
        return dict(y=y) | dict(zip(names, vjp(jnp.ones_like(y)), strict=True))

    return results


def results(operator: Operator, spot: Spot, implementation: str, value: float) -> dict:
    """The result and the gradients with `value` as one coordinate of the sample."""
    arrays = spot.prepare(spot.case.arrays("float64"))
    arrays[operator.arguments.index(operator.displaced)][spot.element] = value
    return jax.tree.map(np.array, program(operator, spot.case, implementation)(arrays))


def spots(operator: Operator):
    return operator.spots


@every(spots, "spot")
def test_nan_offset_reaches_its_own_sample(operator, spot, implementation):
    actual = results(operator, spot, implementation, np.nan)
    expected = results(operator, spot, implementation, FAR)
    for name, index in spot.reached.items():
        assert np.isnan(actual[name][index]).all(), name
        actual[name][index] = expected[name][index] = 0
    assert_close(actual, expected, 1e-12, floor=1.0)


@pytest.mark.parametrize("huge", HUGE)
@every(spots, "spot")
def test_huge_offset_is_outside(operator, spot, huge, implementation):
    actual = results(operator, spot, implementation, huge)
    expected = results(operator, spot, implementation, FAR)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], name)
    assert not np.any(actual[operator.displaced][spot.reached[operator.displaced]])
