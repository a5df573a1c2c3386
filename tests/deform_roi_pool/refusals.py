# SPDX-License-Identifier: MIT
"""Arguments that `deform_roi_pool` refuses, and native calls that its kernels refuse."""

import numpy as np

from tests.deform_roi_pool.cases import RoICase

SMALL = RoICase("small", 2, (5, 6), 4, 3, 2, samples=2, group_size=2, part_size=1, classes=2)
X, ROIS, OFFSET, MASK = SMALL.arrays("float32")
GOOD = dict(x=X, rois=ROIS, offset=OFFSET, mask=MASK, **SMALL.options)
WRONG = {
    "x": (X[0], "x must be [N, H, W, C] with pixels and channels, got shape (5, 6, 16)"),
    "x channels": (X[..., 1:], "x must have output_dim * group_size**2 = 16 channels, got 15"),
    "x dtype": (X.astype(int), "x must have a dtype of"),
    "rois": (ROIS[:, 1:], "rois must be [R, 5], (batch index, x1, y1, x2, y2), got shape (3, 4)"),
    "rois index": (ROIS + np.eye(5, dtype="float32")[:1] * 2, "rois has the batch index"),
    "rois nan": (ROIS * np.nan, "rois has the batch index nan in row 0, but x has 2 images"),
    "rois dtype": (ROIS.astype(complex), "rois must be integers or floating point, got complex"),
    "offset": (OFFSET[1:], "offset does not fit rois: expected (3, 1, 1, classes, 2), got"),
    "offset classes": (np.repeat(OFFSET, 3, 3), "offset has 6 classes, which must divide the 4"),
    "offset dtype": (OFFSET.astype(int), "offset must have a dtype of"),
    "mask": (MASK[:, 1:], "mask does not fit rois: expected (3, 2, 2), got (3, 1, 2)"),
    "mask dtype": (MASK > 0, "mask must have a dtype of"),
    "spatial_scale": (np.nan, "spatial_scale must be a finite number, got nan"),
    "spatial_scale huge": (10**400, "spatial_scale must be a finite number"),
    "spatial_scale zero": (0.0, "spatial_scale must be positive, got 0.0"),
    "pooled_size": (0, "pooled_size must be an integer from 1 to 4096, got 0"),
    "output_dim": (1.5, "output_dim must be an integer"),
    "group_size": (-1, "group_size must be an integer"),
    "part_size": (True, "part_size must be an integer"),
    "samples_per_part": (0, "samples_per_part must be an integer from 1"),
    "trans_std": ("0.1", "trans_std must be a finite number"),
    "trans_std zero": (0.0, "trans_std=0 gives offset no effect"),
    "implementation": ("torch", "implementation must be None, one of"),
}


ATTRIBUTES = dict(
    spatial_scale=np.float64(0.23),
    pooled_size=np.array([2, 2]),
    samples=np.int64(2),
    offset_scale=np.float64(0.13),
    group_size=np.int64(2),
    aligned=False,
)
Y = SMALL.cotangent("float32")
REFUSED = {
    "rank": ("forward", (X[0], ROIS, OFFSET, MASK), (Y,), {}, "x must have 4 axes"),
    "rois": ("forward", (X, ROIS[:, 1:], OFFSET, MASK), (Y,), {}, "rois: expected"),
    "offset": ("forward", (X, ROIS, OFFSET[1:], MASK), (Y,), {}, "offset: expected"),
    "classes": ("forward", (X, ROIS, OFFSET[:, :, :, :0], MASK), (Y,), {}, "classes of offset"),
    "mask": ("forward", (X, ROIS, OFFSET, MASK[:, :, 1:]), (Y,), {}, "mask: expected"),
    "result": ("forward", (X, ROIS, OFFSET, MASK), (Y[1:],), {}, "y: expected"),
    "dtype": ("forward", (X.astype("int32"), ROIS, OFFSET, MASK), (Y,), {}, "dtype"),
    "operands": ("forward", (X, ROIS), (Y,), {}, "expected at least 4 operands"),
    "cells": (
        "forward",
        (X, ROIS, OFFSET, MASK),
        (Y,),
        dict(group_size=np.int64(3)),
        "must divide",
    ),
    "bins": (
        "forward",
        (X, ROIS, OFFSET, MASK),
        (Y,),
        dict(pooled_size=np.array([0, 2])),
        "pooled",
    ),
    "samples": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(samples=np.int64(0)), "samples"),
    "many": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(samples=np.int64(9999)), "at most"),
    "scale": ("forward", (X, ROIS, OFFSET, MASK), (Y,), dict(spatial_scale=np.inf), "finite"),
    "rois gradient": (
        "backward",
        (X, ROIS, OFFSET, MASK, Y),
        (ROIS,),
        dict(wrt=np.array([1])),
        "wrt must be",
    ),
    "gradient": (
        "backward",
        (X, ROIS, OFFSET, MASK, Y),
        (Y,),
        dict(wrt=np.array([0])),
        "x: expected",
    ),
    "tangent": ("jvp", (X, ROIS, OFFSET, MASK, Y), (Y,), dict(wrt=np.array([0])), "x: expected"),
}
