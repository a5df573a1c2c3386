# SPDX-License-Identifier: MIT
"""Random problems of deformable convolution, for `fuzz.py`."""

import numpy as np
from fuzz import Draw, Problem


def draw_problem(draw: Draw) -> Problem:
    feature_groups, offset_groups = draw(1, 3), draw(1, 3)
    strides, dilation = [draw(1, 3) for _ in "hw"], [draw(1, 2) for _ in "hw"]
    padding = [[draw(0, 3) for _ in range(2)] for _ in "hw"]
    kernel = [draw(1, 3) for _ in "hw"]
    image = [draw(d * (k - 1) + 1, 9) for d, k in zip(dilation, kernel, strict=True)]
    output = [
        (size + sum(pads) - d * (k - 1) - 1) // s + 1
        for size, pads, d, k, s in zip(image, padding, dilation, kernel, strides, strict=True)
    ]
    batch, taps = draw(0, 3), kernel[0] * kernel[1]
    group_channels = offset_groups * draw(1, 12)
    features = feature_groups * draw(1, 20)
    samples = (batch, *output, offset_groups)
    return Problem(
        shapes={
            "x": (batch, *image, feature_groups * group_channels),
            "kernel": (*kernel, group_channels, features),
            "offset": (*samples, taps, 2),
            "mask": (*samples, taps * draw(0, 1)),
            "bias": (features,),
            "y": (batch, *output, features),
        },
        primals=("x", "kernel", "offset", "mask"),
        differentiable=("x", "kernel", "offset", "mask", "bias"),
        wide=("offset", "mask"),
        attributes=dict(
            strides=np.array(strides),
            padding=np.array(padding).ravel(),
            kernel_dilation=np.array(dilation),
            feature_group_count=np.int64(feature_groups),
            legacy_boundary=bool(draw(0, 1)),
            float32_columns=bool(draw(0, 1)),
        ),
    )
