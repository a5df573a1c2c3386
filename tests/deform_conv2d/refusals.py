# SPDX-License-Identifier: MIT
"""Arguments that `deform_conv2d` refuses, and native calls that its kernels refuse."""

import numpy as np

from tests.deform_conv2d.cases import CASES

CASE = next(case for case in CASES if case.name == "every_option")
X, KERNEL, OFFSET, MASK, BIAS = CASE.arrays("float32")
GOOD = dict(x=X, kernel=KERNEL, offset=OFFSET, mask=MASK, bias=BIAS, **CASE.options)

WRONG = {
    "x": (X[0, 0], "x must have at least 3 axes, [..., H, W, C], got shape (10, 12)"),
    "x rows": (X[:, :0], "x must be [..., H, W, C] with pixels, got shape"),
    "x columns": (X[:, :, :0], "x must be [..., H, W, C] with pixels, got shape"),
    "x dtype": (X.astype(int), "x must have a dtype of"),
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
    "offset dtype": (OFFSET.astype(int), "offset must have a dtype of"),
    "mask": (MASK[..., 1:], "mask does not fit offset: expected (3, 6, 11, 3, 6), got"),
    "mask dtype": (MASK > 0, "mask must have a dtype of"),
    "bias": (BIAS[1:], "bias must have one value for each of kernel's output channels"),
    "bias dtype": (BIAS.astype("float64"), "bias must have the dtype of x"),
    "strides": (0, "strides must be a positive integer or a pair of them, got 0"),
    "strides size": (2**31, "strides must be less than 2**31, got 2147483648"),
    "strides type": (1.5, "strides must be a positive integer"),
    "kernel_dilation": ((1, 2, 3), "kernel_dilation must be a positive integer or a pair"),
    "kernel_dilation size": ((2, 2**40), "kernel_dilation must be less than 2**31, got (2, 109"),
    "padding size": (2**31, "all less than 2**31, got 2147483648"),
    "padding": ("full", 'padding must be "SAME", "SAME_LOWER", "VALID", an integer >= 0'),
    "padding sign": (-1, 'padding must be "SAME", "SAME_LOWER", "VALID", an integer >= 0'),
    "padding pairs": (((1, 2), (3,)), 'padding must be "SAME", "SAME_LOWER", "VALID"'),
    "feature_group_count": (4, "feature_group_count must divide"),
    "feature_group_count sign": (0, "feature_group_count must be a positive integer, got 0"),
    "boundary": ("reflect", "boundary must be one of"),
    "kernel OIHW": (
        KERNEL.transpose(3, 2, 0, 1),
        "The kernel looks like [O, C // groups, kh, kw]: write kernel.transpose(2, 3, 1, 0).",
    ),
    "x NCHW": (np.moveaxis(X, -1, 1), "x looks like [..., C, H, W]: write jnp.moveaxis(x, -3, -1)"),
    "offset channels": (
        OFFSET.reshape(*OFFSET.shape[:3], -1),
        "write offset.reshape(*offset.shape[:-1], -1, 6, 2).",
    ),
    "offset channels first": (
        np.moveaxis(OFFSET.reshape(*OFFSET.shape[:3], -1), -1, 1),
        "write jnp.moveaxis(offset, -3, -1).reshape(",
    ),
    "mask channels": (
        MASK.reshape(*MASK.shape[:3], -1),
        "write mask.reshape(*mask.shape[:-1], -1, 6).",
    ),
    "precision": ("bogus", "precision must be None or as in jax.lax, got 'bogus'"),
    "implementation": ("torch", "implementation must be None, one of"),
    "implementation empty": ((), "implementation must be None, one of"),
}


ATTRIBUTES = dict(
    strides=np.array(CASE.strides),
    padding=np.array(CASE.geometry.padding).ravel(),
    kernel_dilation=np.array(CASE.kernel_dilation),
    feature_group_count=np.int64(2),
    legacy_boundary=False,
    float32_columns=False,
)
Y = CASE.cotangent("float32")


REFUSED = {
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
