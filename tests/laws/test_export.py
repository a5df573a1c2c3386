# SPDX-License-Identifier: MIT
"""`jax.export`: programs with deformable convolution are saved, loaded and lowered for other machines."""

import functools
import re

import jax
import numpy as np
import pytest
from jax import export

import jax_dcn
from jax_dcn._src.operator import libraries
from tests.deform_conv2d.cases import Case

CASE = Case("export", 3, (6, 5), 4, 6, kernel=(3, 2), offset_groups=2)
OUR_CALLS = jax_dcn.export_disabled_checks


def operator(*arrays, implementation):
    return jax_dcn.deform_conv2d(*arrays, **CASE.options, implementation=implementation)


def gradient(*arrays, implementation):
    f = lambda *a: (operator(*a, implementation=implementation) ** 2).sum()
    return jax.grad(f, range(5))(*arrays)


def symbolic(arrays, dimension="n"):
    """The arrays' shapes, with any number of images."""
    (n,) = export.symbolic_shape(dimension)
    shapes = (
        (n, *array.shape[1:]) if i in (0, 2, 3) else array.shape for i, array in enumerate(arrays)
    )
    return [jax.ShapeDtypeStruct(shape, a.dtype) for shape, a in zip(shapes, arrays, strict=True)]


@pytest.mark.parametrize("f", [operator, gradient], ids=["forward", "gradient"])
def test_exported_program_takes_any_number_of_images(f, implementation):
    program = jax.jit(functools.partial(f, implementation=implementation))
    checks = [] if implementation == "xla" else OUR_CALLS
    exported = export.export(program, disabled_checks=checks)(*symbolic(CASE.arrays()))
    loaded = export.deserialize(bytearray(exported.serialize()))
    for images in (1, 5):
        arrays = Case("export", images, *list(vars(CASE).values())[2:]).arrays()
        expected = program(*arrays)
        for a, e in zip(*map(jax.tree.leaves, (loaded.call(*arrays), expected)), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_xla_exports_to_every_platform_without_exceptions(platform):
    program = jax.jit(functools.partial(gradient, implementation="xla"))
    exported = export.export(program, platforms=[platform])(*symbolic(CASE.arrays()))
    assert exported.platforms == (platform,) and "@jax_dcn" not in exported.mlir_module()


def test_one_export_holds_the_programs_of_several_platforms():
    program = jax.jit(functools.partial(operator, implementation=None))
    exported = export.export(program, platforms=["cpu", "cuda"], disabled_checks=OUR_CALLS)(
        *symbolic(CASE.arrays())
    )
    assert "jax_dcn_deform_conv2d_forward" in exported.mlir_module()
    np.testing.assert_allclose(
        exported.call(*CASE.arrays()), program(*CASE.arrays()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif("cuda" in libraries._unavailable, reason=libraries._unavailable.get("cuda", ""))
@pytest.mark.parametrize(
    ("f", "calls"),
    [(operator, {"forward", "columns"}), (gradient, {"backward", "columns_backward"})],
    ids=["forward", "gradient"],
)
def test_export_for_cpu_and_cuda_holds_the_kernels_of_both(f, calls):
    program = jax.jit(functools.partial(f, implementation="native"))
    exported = export.export(program, platforms=["cpu", "cuda"], disabled_checks=OUR_CALLS)(
        *CASE.arrays()
    )
    found = set(re.findall(r"custom_call @jax_dcn_deform_conv2d_(\w+)", exported.mlir_module()))
    assert calls <= found
    loaded = export.deserialize(bytearray(exported.serialize()))
    results = map(jax.tree.leaves, (loaded.call(*CASE.arrays()), program(*CASE.arrays())))
    for a, e in zip(*results, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def test_native_export_names_the_check_that_refuses_it():
    program = jax.jit(functools.partial(operator, implementation="native"))
    with pytest.raises(ValueError, match="jax_dcn_deform_conv2d_forward"):
        export.export(program)(*CASE.arrays())
