# SPDX-License-Identifier: MIT
"""Random problems of deformable RoI pooling, for `fuzz.py`."""

import numpy as np
from fuzz import Draw, Problem


def draw_problem(draw: Draw) -> Problem:
    group_size, classes = draw(1, 3), draw(1, 3)
    features = classes * draw(1, 7)
    pooled = [draw(1, 4) for _ in "hw"]
    parts = [draw(1, 3) * displaced for displaced in [draw(0, 1)] for _ in "hw"]
    mask = [size * modulated for modulated in [draw(0, 1)] for size in pooled]
    images, regions = draw(0, 3), draw(0, 5)
    aligned = bool(draw(0, 1))
    return Problem(
        shapes={
            "x": (images, draw(1, 9), draw(1, 11), group_size**2 * features),
            "rois": (regions, 5),
            "offset": (regions, *parts, classes, 2),
            "mask": (regions, *mask),
            "y": (regions, *pooled, features),
        },
        primals=("x", "rois", "offset", "mask"),
        differentiable=("x", "offset", "mask"),
        wide=("rois", "offset", "mask"),
        attributes=dict(
            spatial_scale=np.float64([0.5, 1, -2, 0][draw(0, 3)]),
            offset_scale=np.float64([0.1, 1, -2, 0][draw(0, 3)]),
            pooled_size=np.array(pooled),
            samples=np.int64(draw(0 if aligned else 1, 4)),
            group_size=np.int64(group_size),
            aligned=aligned,
        ),
    )
