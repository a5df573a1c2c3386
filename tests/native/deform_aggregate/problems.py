# SPDX-License-Identifier: MIT
"""Random problems of deformable aggregation, for `fuzz.py`."""

import numpy as np
from fuzz import Draw, Problem


def draw_problem(draw: Draw) -> Problem:
    maps = draw(1, 3)
    shapes = [draw(1, 7) for _ in range(2 * maps)]
    points = [draw(0, 4) for _ in range(maps)]
    pixels = sum(np.multiply(shapes[::2], shapes[1::2]))
    groups, images, queries = draw(1, 3), draw(0, 3), draw(0, 6)
    channels, samples, weighted = groups * draw(1, 19), sum(points), draw(0, 1)
    return Problem(
        shapes={
            "x": (images, pixels, channels),
            "positions": (images, queries, groups, samples, 2),
            "weights": (images, queries, groups, samples * weighted),
            "y": (images, queries, channels),
        },
        primals=("x", "positions", "weights"),
        differentiable=("x", "positions", "weights"),
        wide=("positions", "weights"),
        attributes=dict(
            shapes=np.array(shapes),
            points=np.array(points),
            legacy_boundary=bool(draw(0, 1)),
            unit_square=bool(draw(0, 1)),
            whole_positions=bool(draw(0, 1)),
        ),
    )
