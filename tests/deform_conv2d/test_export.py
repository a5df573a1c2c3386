# SPDX-License-Identifier: MIT
"""Exported programs of `deform_conv2d` alone; `tests/laws` has the laws of every operator."""

import re

import jax
import numpy as np
import pytest
from jax import export

from jax_dcn import export_disabled_checks
from jax_dcn._src.operator import libraries
from tests.deform_conv2d.row import EXPORTED


def loss(*arrays):
    return (EXPORTED.function("native")(*arrays) ** 2).sum()


def test_one_export_of_any_number_of_images_holds_several_platforms():
    (n,) = export.symbolic_shape("n")
    arrays = EXPORTED.arrays()
    shapes = [
        jax.ShapeDtypeStruct((n, *a.shape[1:]) if i in (0, 2, 3) else a.shape, a.dtype)
        for i, a in enumerate(arrays)
    ]
    program = jax.jit(EXPORTED.function())
    exported = export.export(
        program, platforms=["cpu", "cuda"], disabled_checks=export_disabled_checks
    )(*shapes)
    assert "jax_dcn_deform_conv2d_forward" in exported.mlir_module()
    np.testing.assert_allclose(exported.call(*arrays), program(*arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, None)], ids=["each", "shared"])
def test_export_of_any_number_of_kernels(axes, implementation):
    arrays = EXPORTED.arrays()[:3]
    f = jax.jit(jax.vmap(EXPORTED.function(implementation), axes))
    (n,) = export.symbolic_shape("n")
    mapped = [
        a if axis is None else np.stack([a, -a]) for a, axis in zip(arrays, axes, strict=True)
    ]
    shapes = [
        jax.ShapeDtypeStruct(a.shape if axis is None else (n, *a.shape), a.dtype)
        for a, axis in zip(arrays, axes, strict=True)
    ]
    exported = export.export(f, disabled_checks=export_disabled_checks)(*shapes)
    np.testing.assert_allclose(exported.call(*mapped), f(*mapped), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("cuda" in libraries._unavailable, reason=libraries._unavailable.get("cuda", ""))
@pytest.mark.parametrize(
    ("f", "calls"),
    [
        (EXPORTED.function("native"), {"forward", "columns"}),
        (jax.grad(loss, range(5)), {"backward", "columns_backward"}),
    ],
    ids=["forward", "gradient"],
)
def test_export_for_cpu_and_cuda_holds_the_kernels_of_both(f, calls):
    exported = export.export(
        jax.jit(f), platforms=["cpu", "cuda"], disabled_checks=export_disabled_checks
    )(*EXPORTED.arrays())
    found = set(re.findall(r"custom_call @jax_dcn_deform_conv2d_(\w+)", exported.mlir_module()))
    assert calls <= found
