# SPDX-License-Identifier: MIT
"""Zero of anything: an empty result and zero gradients, or an error that names the argument."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.package.calls import ROWS

RANDOM = ("nnx.DeformConv", "nnx.MSDeformAttn", "nnx.DCNv3")  # whose parameters are not zero
NAMES = {"x", "kernel", "offset", "rois", "positions", "value", "locations", "grid", "input"}
NAMES |= {"weight", "output_dim", "offset_mask", "query"}
CASES = [(name, size) for name, (*_, sizes) in ROWS.items() for size in sizes]


@pytest.mark.parametrize("name, size", CASES)
def test_zero_of_a_count_gives_an_empty_result_or_names_the_argument(name, size, implementation):
    make, shapes, sizes = ROWS[name]
    f = make(implementation)
    arrays = [np.zeros(shape, np.float32) for shape in shapes(**sizes | {size: 0})]

    def total(*arrays):
        y = f(*arrays)
        return y.sum(), y

    gradient = jax.grad(total, range(len(arrays)), has_aux=True)
    try:
        gradients, y = gradient(*arrays)
    except ValueError as error:
        assert NAMES & set(re.findall(r"\w+", str(error))), error
        return
    assert not jnp.any(y) or name in RANDOM
    for array, g in zip(arrays, gradients, strict=True):
        assert g.shape == array.shape and bool(jnp.isfinite(g).all())
