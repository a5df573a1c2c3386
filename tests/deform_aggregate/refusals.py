# SPDX-License-Identifier: MIT
"""Arguments that `deform_aggregate` refuses, and native calls that its kernels refuse."""

import numpy as np

from tests.deform_aggregate.cases import AggregateCase

SMALL = AggregateCase("small", 2, ((4, 5), (2, 3)), (2, 1), 3, 2, 4)
X, POSITIONS, WEIGHTS = SMALL.arrays("float32")
Y = SMALL.cotangent("float32")
GOOD = dict(x=X, positions=POSITIONS, weights=WEIGHTS, **SMALL.options)
WRONG = {
    "x": (X[0, 0], "x must have at least 2 axes, [..., S, C], got shape (8,)"),
    "x pixels": (X[:, 1:], "x must have the pixels of all maps: expected 26"),
    "x dtype": (X.astype(int), "x must have a dtype of"),
    "positions": (POSITIONS[0], "positions must be [..., Q, G, T, 2] with the batch axes of x"),
    "positions axis": (POSITIONS[..., :1], "positions must be [..., Q, G, T, 2]"),
    "positions batch": (POSITIONS[1:], "positions must have the batch axes of x: expected (2,)"),
    "positions groups": (np.repeat(POSITIONS, 3, 2), "6 groups, which must divide the 8 channels"),
    "positions dtype": (POSITIONS > 0, "positions must have a dtype of"),
    "weights": (WEIGHTS[:, 1:], "weights does not fit positions: expected (2, 3, 2, 3), got"),
    "weights dtype": (WEIGHTS.astype(int), "weights must have a dtype of"),
    "shapes": (4, "shapes must be a non-empty sequence of (height, width)"),
    "shapes empty": ((), "shapes must be a non-empty sequence of (height, width)"),
    "shapes zero": (((4, 5), (0, 3)), "shapes must be a non-empty sequence of (height, width)"),
    "shapes width": (((4,), (2, 3)), "shapes must be a non-empty sequence of (height, width)"),
    "points": ((2, 2), "points must have one number for each of the 2 maps, with the sum 3"),
    "points negative": ((4, -1), "points must be a sequence of integers >= 0, got (4, -1)"),
    "points missing": (None, "positions has 3 samples, which do not split evenly over 2 maps"),
    "boundary": ("reflect", "boundary must be one of ('padded', 'legacy'), got 'reflect'"),
    "implementation": ("torch", "implementation must be None, one of"),
}

ATTRIBUTES = dict(
    shapes=np.array(SMALL.shapes).ravel(),
    points=np.array(SMALL.points),
    legacy_boundary=False,
    unit_square=False,
    whole_positions=False,
)
ARRAYS = (X, POSITIONS, WEIGHTS)
REFUSED = {
    "rank": ("forward", (X[0], POSITIONS, WEIGHTS), (Y,), {}, "x must have 3 axes"),
    "pixels": ("forward", (X[:, 1:], POSITIONS, WEIGHTS), (Y,), {}, "x: expected"),
    "positions": ("forward", (X, POSITIONS[:1], WEIGHTS), (Y,), {}, "positions: expected"),
    "groups": (
        "forward",
        (X[..., 1:], POSITIONS, WEIGHTS),
        (Y[..., 1:],),
        {},
        "must divide the channels",
    ),
    "weights": ("forward", (X, POSITIONS, WEIGHTS[:, 1:]), (Y,), {}, "weights: expected"),
    "result": ("forward", ARRAYS, (Y[1:],), {}, "y: expected"),
    "dtype": ("forward", (X.astype("int32"), POSITIONS, WEIGHTS), (Y,), {}, "dtype"),
    "operands": ("forward", (X, POSITIONS), (Y,), {}, "expected at least 3 operands"),
    "maps": ("forward", ARRAYS, (Y,), dict(points=np.array([3])), "shapes must have 2 values"),
    "map": ("forward", ARRAYS, (Y,), dict(shapes=np.array([4, 5, 0, 3])), "shapes"),
    "points": ("forward", ARRAYS, (Y,), dict(points=np.array([4, -1])), "points"),
    "unit square": ("forward", ARRAYS, (Y,), dict(unit_square=np.int64(1)), "unit_square|attr"),
    "gradient": ("backward", (*ARRAYS, Y), (Y,), dict(wrt=np.array([0])), "x: expected"),
    "wrt": ("backward", (*ARRAYS, Y), (X,), dict(wrt=np.array([3])), "wrt must be"),
    "tangent": ("jvp", (*ARRAYS, Y), (Y,), dict(wrt=np.array([0])), "x: expected"),
}
