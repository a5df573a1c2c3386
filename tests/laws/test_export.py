# SPDX-License-Identifier: MIT
"""`jax.export`: programs with an operator are saved, loaded and lowered for other machines."""

import jax
import numpy as np
import pytest
from jax import export

from jax_dcn import export_disabled_checks
from jax_dcn._src.operator import libraries
from jax_dcn._src.registry import OPERATORS
from tests.laws.operator import Operator
from tests.laws.table import every, every_operator

no_cuda = pytest.mark.skipif(
    "cuda" in libraries._unavailable, reason=libraries._unavailable.get("cuda", "")
)


def value(operator: Operator, implementation: str | None = None):
    return operator.resized(3).function(implementation)


def gradient(operator: Operator, implementation: str | None = None):
    f = value(operator, implementation)
    return jax.grad(lambda *arrays: (f(*arrays) ** 2).sum(), operator.moving)


def symbolic(operator: Operator) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the arrays, with any size of the first axis where one can be free."""
    (n,) = export.symbolic_shape("n")
    return [
        jax.ShapeDtypeStruct((n, *a.shape[1:]) if name in operator.batched else a.shape, a.dtype)
        for name, a in zip(operator.arguments, operator.resized(3).arrays("float32"), strict=True)
    ]


def assert_same_results(f, g, arrays) -> None:
    for a, e in zip(*map(jax.tree.leaves, (f(*arrays), g(*arrays))), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def saved_and_loaded(exported: export.Exported) -> export.Exported:
    return export.deserialize(bytearray(exported.serialize()))


@pytest.mark.parametrize("f", [value, gradient])
@every_operator
def test_exported_program_takes_any_batch(operator, f, implementation):
    program = jax.jit(f(operator, implementation))
    checks = [] if implementation == "xla" else export_disabled_checks
    exported = export.export(program, disabled_checks=checks)(*symbolic(operator))
    loaded = saved_and_loaded(exported)
    for size in (1, 5):
        assert_same_results(loaded.call, program, operator.resized(size).arrays("float32"))


def all_sizes_free(operator: Operator):
    return [(index,) for index in range(len(operator.free))]


@every(all_sizes_free, "index")
def test_exported_program_takes_any_size(operator, index, implementation):
    free = operator.free[index]
    f = free.function(implementation)

    def value_and_gradients(*arrays):
        g = operator.of_differentiable(f, arrays)
        y, vjp = jax.vjp(g, *operator.differentiable(arrays))
        return y, vjp(y)

    names = free.sizes[0]
    symbols = dict(zip(names, export.symbolic_shape(",".join(names)), strict=True))
    types = [jax.ShapeDtypeStruct(shape, np.float32) for shape in free.shapes(**symbols)]
    program = jax.jit(value_and_gradients)
    exported = export.export(program, disabled_checks=export_disabled_checks)(*types)
    for sizes in free.sizes:
        arrays = [
            np.random.default_rng(0).uniform(size=shape).astype(np.float32)
            for shape in free.shapes(**sizes)
        ]
        assert_same_results(exported.call, program, arrays)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@every_operator
def test_xla_exports_to_every_platform_without_exceptions(operator, platform):
    program = jax.jit(gradient(operator, "xla"))
    exported = export.export(program, platforms=[platform])(*symbolic(operator))
    assert exported.platforms == (platform,) and "@jax_dcn" not in exported.mlir_module()


@no_cuda
@pytest.mark.parametrize("f", [value, gradient])
@every_operator
def test_export_for_cpu_and_cuda_is_loaded_and_runs(operator, f):
    if reason := OPERATORS[operator.name].primitive.why_not("cuda"):
        pytest.skip(reason)
    program = jax.jit(f(operator, "native"))
    arrays = operator.resized(3).arrays("float32")
    exported = export.export(
        program, platforms=["cpu", "cuda"], disabled_checks=export_disabled_checks
    )(*arrays)
    assert f"jax_dcn_{operator.name}_" in exported.mlir_module()
    assert_same_results(saved_and_loaded(exported).call, program, arrays)


@every_operator
def test_native_export_names_the_check_that_refuses_it(operator):
    program = jax.jit(value(operator, "native"))
    with pytest.raises(ValueError, match=f"jax_dcn_{operator.name}_forward"):
        export.export(program)(*operator.resized(3).arrays("float32"))
