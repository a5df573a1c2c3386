# SPDX-License-Identifier: MIT
"""Programs of `deform_conv2d` alone; `tests/laws` has the laws of every operator."""

import functools

import jax
import numpy as np

from tests.deform_conv2d.row import SMALL


def test_vmap_of_images_is_a_batch_axis():
    f = jax.vmap(SMALL.function(), (0, None, 0, 0, None))
    x, kernel, offset, mask, bias = SMALL.arrays("float64")
    x, offset, mask = (np.stack([a, a, a]) for a in (x, offset, mask))
    program = jax.make_jaxpr(f)(x, kernel, offset, mask, bias)
    (call,) = (e for e in program.eqns if e.primitive.name == "deform_conv2d")
    assert call.invars[0].aval.shape == (3, SMALL.batch, *SMALL.image, SMALL.channels)
    assert call.params["geometry"] == SMALL.geometry


def test_precision_is_that_of_the_matrix_products_on_xla():
    arrays = SMALL.arrays("float32")
    for precision in ("default", "highest"):
        f = functools.partial(SMALL.function(implementation="xla"), precision=precision)
        text = jax.jit(f).lower(*arrays).as_text()
        assert ("precision = [HIGHEST, HIGHEST]" in text) == (precision == "highest")
    native = SMALL.function(implementation="native")
    assert (native(*arrays) == native(*arrays, precision="highest")).all()


def test_precision_is_the_default_where_the_operator_is_called():
    for implementation, precise in (
        ("xla", "precision = [HIGHEST, HIGHEST]"),
        ("native", "float32_columns = true"),
    ):

        @jax.jit
        def f(*arrays, implementation=implementation):
            with jax.default_matmul_precision("highest"):
                return SMALL.function(implementation)(*arrays)

        assert precise in f.lower(*SMALL.arrays("float32")).as_text()
