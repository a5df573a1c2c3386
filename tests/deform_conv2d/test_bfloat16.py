# SPDX-License-Identifier: MIT
"""Errors of bfloat16, element by element, against float64.

Some processors multiply bfloat16: by default the kernels round sampled columns to bfloat16 there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn._src.operator import libraries
from tests.deform_conv2d.cases import Case

ROUNDING = 2.0**-8  # the largest relative error of rounding to bfloat16
FLOAT32 = 1e-5
CASE = Case(
    "paired",
    batch=2,
    image=(9, 7),
    channels=72,
    features=36,
    kernel=(3, 2),
    feature_group_count=2,
    offset_groups=3,
)
# An odd number of pixels, whose samples all lie inside: the last has no partner in a pair of pixels.
INSIDE = Case("inside", 1, (9, 11), 64, 32, padding="VALID")
CASES = {CASE: 2.0, INSIDE: 0.0}  # and the spread of their offsets
PRECISIONS = (None, "default", "high", "highest")


@functools.cache
def exact(case):
    """The arrays in bfloat16, and in float64 the results and the sizes of what they sum."""
    arrays = [jnp.asarray(a, "float32") for a in case.arrays("float32", spread=CASES[case])]
    x, kernel, offset, mask, _ = arrays
    narrow = [x.astype("bfloat16"), kernel.astype("bfloat16"), offset, mask]
    grad_y = jnp.asarray(case.cotangent("float32"), "bfloat16")
    wide = [array.astype("float64") for array in (*narrow, grad_y)]
    absolute = [abs(array) if i != 2 else array for i, array in enumerate(wide)]
    return (*narrow, grad_y), results(case, *wide), results(case, *absolute)


@functools.partial(jax.jit, static_argnames=("case", "precision"))
def results(case, x, kernel, offset, mask, grad_y, precision=None):
    """y and the gradients of x and kernel."""
    f = functools.partial(case.function("native"), precision=precision)
    y, vjp = jax.vjp(lambda x, kernel: f(x, kernel, offset, mask), x, kernel)
    return y, *vjp(grad_y)


def excess(precision, columns: float, case=CASE) -> float:
    """The largest error, in units of what rounding columns and results explains."""
    arrays, expected, sizes = exact(case)
    found = 0.0
    for a, e, s in zip(results(case, *arrays, precision=precision), expected, sizes, strict=True):
        of_sums = (columns + FLOAT32) * s
        bound = of_sums + ROUNDING * (abs(e) + of_sums)
        found = max(found, float(jnp.max(abs(a.astype("float64") - e) / bound)))
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_is_that_of_rounding_columns_and_results(precision, case):
    columns = 0.0 if precision in ("high", "highest") else ROUNDING
    assert excess(precision, columns, case) <= 1


@pytest.mark.skipif(
    not any(name in libraries.describe("cpu") for name in ("avx512_bf16", "amx_bf16")),
    reason="the kernels multiply float32",
)
def test_columns_are_rounded_unless_more_is_asked_for():
    assert excess(None, 0.0) > 1
    with jax.default_matmul_precision("highest"):
        assert excess(None, 0.0) <= 1


def test_precision_of_float32_is_always_full():
    arrays = [np.asarray(a, "float32") for a in CASE.arrays("float32")]
    y = [CASE.function("native")(*arrays, precision=p) for p in ("default", "highest")]
    assert (y[0] == y[1]).all()
