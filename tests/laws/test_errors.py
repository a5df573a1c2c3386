# SPDX-License-Identifier: MIT
"""Bad input is refused in words that name the argument, by Python and by the kernels."""

import re

import jax
import numpy as np
import pytest

from jax_dcn._src.operator import libraries
from tests.laws.operator import Operator
from tests.laws.table import every, every_operator


@every(lambda operator: operator.wrong, "argument")
def test_wrong_argument_is_named(operator, argument):
    value, message = operator.wrong[argument]
    with pytest.raises(ValueError, match=re.escape(message)):
        operator.call(**(operator.good | {argument.split()[0]: value}))


@every_operator
def test_errors_come_before_anything_is_compiled(operator):
    name = operator.displaced
    wrong, message = operator.wrong[name]
    f = jax.jit(lambda value: operator.call(**(operator.good | {name: value})))
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(f, wrong)


@every_operator
def test_float64_is_refused_while_jax_computes_in_32_bits(operator):
    arrays = [jax.numpy.asarray(array) for array in operator.small.arrays("float64")]
    message = r"^\w+ must not be float64 while jax_enable_x64 is off: set jax_enable_x64, or"
    with jax.enable_x64(False), pytest.raises(ValueError, match=message):
        operator.small.function()(*arrays)


@every_operator
def test_implementation_that_cannot_run_is_refused(operator, monkeypatch):
    monkeypatch.setattr(libraries, "why_not", lambda *_, **__: "there is no compiler")
    jax.clear_caches()
    refused = lambda implementation: operator.call(**operator.good, implementation=implementation)
    with pytest.raises(
        NotImplementedError, match=r"native.*there is no compiler.*implementation=None"
    ):
        refused("native")
    expected = refused("xla")
    for fallback in (None, ("native", "xla")):
        assert (refused(fallback) == expected).all()
    jax.clear_caches()


def native_call(operator: Operator, target: str, operands, results, attributes):
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    call = jax.ffi.ffi_call(f"jax_dcn_{operator.name}_{target}", shapes)
    return jax.block_until_ready(call(*operands, **(operator.attributes | attributes)))


@every_operator
def test_native_call_accepts_what_fits(operator):
    operands = [operator.good[name] for name in operator.arguments]
    y = jax.eval_shape(lambda: operator.call(**operator.good))
    (result,) = native_call(operator, "forward", operands, [y], {})
    assert np.isfinite(result).all()


@every(lambda operator: operator.refused, "name")
def test_native_call_refuses_what_does_not_fit(operator, name):
    target, operands, results, attributes, message = operator.refused[name]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        native_call(operator, target, operands, results, attributes)
