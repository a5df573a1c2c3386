# SPDX-License-Identifier: MIT
"""Bad input is refused in words, by Python and by the kernels."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_conv2d
from jax_dcn._src.operator import libraries
from tests.deform_conv2d.cases import CASES

CASE = next(case for case in CASES if case.name == "every_option")
X, KERNEL, OFFSET, MASK, BIAS = CASE.arrays("float32")
GOOD = dict(x=X, kernel=KERNEL, offset=OFFSET, mask=MASK, bias=BIAS, **CASE.options)

WRONG_VALUES = {
    "x": (X[0, 0], "x must have at least 3 axes, [..., H, W, C], got shape (10, 12)"),
    "x size": (X[:, :0], "x is smaller than the kernel"),
    "x dtype": (X.astype(int), "x must be one of"),
    "kernel": (KERNEL[0], "kernel must be [kh, kw, C // feature_group_count, O], got shape"),
    "kernel channels": (KERNEL[:, :, 1:], "expected (2, 3, 6, 10), got (2, 3, 5, 10)"),
    "kernel dtype": (KERNEL.astype("float64"), "kernel must have the dtype of x: expected float32"),
    "offset": (
        OFFSET[:, 1:],
        "offset does not fit x and kernel: expected (3, 6, 11, G, 6, 2), got",
    ),
    "offset last axis": (OFFSET[..., :1], "expected (3, 6, 11, G, 6, 2), got (3, 6, 11, 3, 6, 1)"),
    "offset taps": (
        OFFSET[..., 1:, :],
        "offset has 5 taps per group but kernel is 2x3, which has 6: expected (3, 6, 11, G, 6, 2)",
    ),
    "offset groups": (
        np.concatenate([OFFSET, OFFSET[..., :2, :, :]], axis=3),
        "offset has 5 groups, which must divide the 12 channels of x",
    ),
    "offset batch": (OFFSET[:1], "expected (3, 6, 11, G, 6, 2), got (1, 6, 11, 3, 6, 2)"),
    "offset dtype": (OFFSET.astype(int), "offset must be one of"),
    "mask": (MASK[..., 1:], "mask does not fit offset: expected (3, 6, 11, 3, 6), got"),
    "mask dtype": (MASK > 0, "mask must be one of"),
    "bias": (BIAS[1:], "bias must have one value for each of kernel's output channels"),
    "bias dtype": (BIAS.astype("float64"), "bias must have the dtype of x"),
    "strides": (0, "strides must be a positive integer or a pair of them, got 0"),
    "strides type": (1.5, "strides must be a positive integer"),
    "kernel_dilation": ((1, 2, 3), "kernel_dilation must be a positive integer or a pair"),
    "padding": ("FULL", 'padding must be "SAME" or "VALID" when it is a string, got'),
    "padding sign": (-1, 'padding must be "SAME", "VALID", an integer >= 0'),
    "padding pairs": (((1, 2), (3,)), 'padding must be "SAME", "VALID"'),
    "feature_group_count": (4, "feature_group_count must divide"),
    "feature_group_count sign": (0, "feature_group_count must be a positive integer, got 0"),
    "boundary": ("reflect", "boundary must be one of"),
    "implementation": ("torch", "implementation must be None, one of"),
    "implementation empty": ((), "implementation must be None, one of"),
}


@pytest.mark.parametrize("argument", WRONG_VALUES)
def test_wrong_argument_is_named(argument):
    value, message = WRONG_VALUES[argument]
    with pytest.raises(ValueError, match=re.escape(message)):
        deform_conv2d(**(GOOD | {argument.split()[0]: value}))


def test_errors_come_before_anything_is_compiled():
    f = jax.jit(lambda offset: deform_conv2d(**(GOOD | dict(offset=offset))))
    with pytest.raises(ValueError, match="offset has 5 taps"):
        jax.eval_shape(f, OFFSET[..., 1:, :])


def test_implementation_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setattr(libraries, "why_not", lambda platform, target: "there is no compiler")
    jax.clear_caches()
    refused = functools.partial(deform_conv2d, **GOOD)
    with pytest.raises(
        NotImplementedError, match=r"native.*there is no compiler.*implementation=None"
    ):
        refused(implementation="native")
    expected = refused(implementation="xla")
    for fallback in (None, ("native", "xla")):
        assert (refused(implementation=fallback) == expected).all()
    jax.clear_caches()


ATTRIBUTES = dict(
    strides=np.array(CASE.strides),
    padding=np.array(CASE.geometry.padding).ravel(),
    kernel_dilation=np.array(CASE.kernel_dilation),
    feature_group_count=np.int64(2),
    legacy_boundary=False,
)
Y = CASE.cotangent("float32")


def call(target: str, operands, results, **attributes):
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results]
    f = jax.ffi.ffi_call(f"jax_dcn_deform_conv2d_{target}", shapes)
    return f(*operands, **(ATTRIBUTES | attributes))


def test_native_call_accepts_what_fits():
    (y,) = call("forward", (X, KERNEL, OFFSET, MASK, BIAS), (Y,))
    assert jnp.allclose(y, deform_conv2d(**GOOD))


REFUSED_BY_THE_KERNEL = {
    "rank": ("forward", (X[0], KERNEL, OFFSET, MASK, BIAS), (Y,), {}, "x must have 4 axes"),
    "channels": (
        "forward",
        (X, KERNEL[:, :, 1:], OFFSET, MASK, BIAS),
        (Y,),
        {},
        "kernel: expected",
    ),
    "offset": ("forward", (X, KERNEL, OFFSET[:, 1:], MASK, BIAS), (Y,), {}, "offset: expected"),
    "groups": (
        "forward",
        (X, KERNEL, OFFSET[:, :, :, :0], MASK, BIAS),
        (Y,),
        {},
        "groups of offset",
    ),
    "mask": ("forward", (X, KERNEL, OFFSET, MASK[:1], BIAS), (Y,), {}, "mask: expected"),
    "bias": ("forward", (X, KERNEL, OFFSET, MASK, BIAS[1:]), (Y,), {}, "bias: expected"),
    "result": ("forward", (X, KERNEL, OFFSET, MASK, BIAS), (Y[1:],), {}, "y: expected"),
    "dtype": ("forward", (X.astype("int32"), KERNEL, OFFSET, MASK, BIAS), (Y,), {}, "dtype"),
    "wide": (
        "forward",
        (X, KERNEL, OFFSET.astype("float64"), MASK, BIAS),
        (Y,),
        {},
        "offset has a dtype",
    ),
    "operands": ("forward", (X, KERNEL), (Y,), {}, "expected at least 4 operands"),
    "extra": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS, X),
        (Y,),
        {},
        "expected 5 operands, got 6",
    ),
    "stride": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(strides=np.array([0, 1])),
        "strides must be",
    ),
    "huge stride": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(strides=np.array([2**40, 1])),
        "strides must be",
    ),
    "padding": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(padding=np.array([1, 1])),
        "must have 2, 4 and 2",
    ),
    "feature groups": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(feature_group_count=np.int64(5)),
        "must divide",
    ),
    "small": (
        "forward",
        (X[:, :1], KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(padding=np.zeros(4, int)),
        "smaller than the kernel",
    ),
    "attribute type": (
        "forward",
        (X, KERNEL, OFFSET, MASK, BIAS),
        (Y,),
        dict(legacy_boundary=np.int64(1)),
        "legacy_boundary|attribute",
    ),
    "wrt": ("backward", (X, KERNEL, OFFSET, MASK, Y), (X,), dict(wrt=np.array([5])), "wrt must be"),
    "wrt twice": (
        "backward",
        (X, KERNEL, OFFSET, MASK, Y),
        (X, X),
        dict(wrt=np.array([0, 0])),
        "wrt must be",
    ),
    "cotangent": (
        "backward",
        (X, KERNEL, OFFSET, MASK, X),
        (X,),
        dict(wrt=np.array([0])),
        "y: expected",
    ),
    "gradient": (
        "backward",
        (X, KERNEL, OFFSET, MASK, Y),
        (KERNEL,),
        dict(wrt=np.array([0])),
        "x: expected",
    ),
    "tangent": (
        "jvp",
        (X, KERNEL, OFFSET, MASK, KERNEL),
        (Y,),
        dict(wrt=np.array([0])),
        "x: expected",
    ),
    "no wrt": ("jvp", (X, KERNEL, OFFSET, MASK, X), (Y,), {}, "wrt"),
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_KERNEL)
def test_native_call_refuses_what_does_not_fit(name):
    target, operands, results, attributes, message = REFUSED_BY_THE_KERNEL[name]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(target, operands, results, **attributes))


def test_channels_and_features_must_be_there():
    empty = np.zeros((1, 4, 4, 0), np.float32)
    offset = np.zeros((1, 4, 4, 1, 9, 2), np.float32)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(empty, np.zeros((3, 3, 0, 2), np.float32), offset)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(
            np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 2, 0), np.float32), offset
        )
