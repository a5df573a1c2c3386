# SPDX-License-Identifier: MIT
"""The row of `deform_roi_pool`, and of `deform_roi_align`, in the table of the laws."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_dcn import deform_roi_align, deform_roi_pool, reference
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from tests.deform_roi_pool import refusals
from tests.deform_roi_pool.cases import ARGUMENTS, CASES, RoICase
from tests.laws import loops
from tests.laws.operator import Free, Operator, Spot, Spread

CASE = {case.name: case for case in CASES}


def cases(*names: str) -> tuple[RoICase, ...]:
    return tuple(CASE[name] for name in names)


def geometry(case: RoICase) -> RoIGeometry:
    scale = case.options["gamma" if case.aligned else "trans_std"]
    sizes = case.spatial_scale, case.bins, case.samples
    return RoIGeometry(*sizes, scale, case.group_size, case.aligned)


def plain_jax(case: RoICase):
    cells = case.group_size

    def f(x, rois, offset, mask):
        offset = jnp.zeros((case.regions, 0, 0, 1, 2), x.dtype) if offset is None else offset
        mask = jnp.zeros((case.regions, 0, 0), x.dtype) if mask is None else mask
        grouped = jnp.moveaxis(x.reshape(*x.shape[:3], -1, cells, cells), 3, -1).reshape(x.shape)
        return reference.deform_roi_pool(grouped, rois, offset, mask, geometry=geometry(case))

    return f


def plain_loops(case: RoICase, *arrays) -> np.ndarray:
    loop = loops.deform_roi_align if case.aligned else loops.deform_roi_pool
    return loop(*arrays, **case.options)


def half(arrays: tuple, dtype: str) -> tuple:
    """Images in 16 bits; regions, offsets and masks wider, as they may be."""
    return arrays[0].astype(dtype), *arrays[1:]


REGION = 2
BIN = (REGION, 1, 1)


def inside(arrays: tuple) -> tuple:
    arrays[1][REGION, 1:] = [5, 5, 25, 25]
    return arrays


def spot(case: RoICase, axis: int) -> Spot:
    element = (*BIN, 0, axis)
    return Spot(case, element, dict(y=BIN, offset=(*BIN, 0), mask=BIN), inside)


def crowd(arrays: tuple) -> tuple:
    x, rois, offset, mask = arrays
    return x, np.full_like(rois, [0, 5, 5, 25, 25]), np.zeros_like(offset), mask


def free(function: Callable, **options) -> Free:
    return Free(
        lambda implementation: functools.partial(
            function, spatial_scale=0.5, pooled_size=3, **options, implementation=implementation
        ),
        lambda n, h, w, r: ((n, h, w, 4), (r, 5), (r, 3, 3, 1, 2), (r, 3, 3)),
        (dict(n=2, h=5, w=7, r=3), dict(n=1, h=3, w=9, r=6)),
    )


SPREAD = RoICase("spread", 2, (6, 7), 4, 8, 2, samples=2)
REGIONS = dict.fromkeys(ARGUMENTS[1:], P("data"))
FEATURES = dict(x=P(None, None, None, "model"))

OPERATOR = Operator(
    name="deform_roi_pool",
    call=deform_roi_pool,
    arguments=ARGUMENTS,
    displaced="offset",
    constant=("rois",),
    cases=tuple(CASES),
    float32_cases=cases("version_1", "align_adaptive"),
    xla_cases=cases("cells_parts_and_classes"),
    difference_cases=cases("cells_parts_and_classes", "align_adaptive"),
    half_cases=cases("cells_parts_and_classes"),
    loop_cases=tuple(CASES),
    small=refusals.SMALL,
    tiny=RoICase("tiny", 2, (4, 5), 2, 3, (1, 2), samples=0, aligned=True),
    reference=plain_jax,
    loops=plain_loops,
    half=half,
    wide=("rois", "offset", "mask"),
    smooth=lambda arrays: arrays,
    mapped=("x", "rois", "offset mask", "x rois offset mask"),
    spots=tuple(spot(CASE[name], 1) for name in ("pool", "align", "align_adaptive")),
    good=refusals.GOOD,
    wrong=refusals.WRONG,
    attributes=refusals.ATTRIBUTES,
    refused=refusals.REFUSED,
    busy=RoICase("busy", 2, (13, 9), 70, 90, 5),
    shared=RoICase("shared", 1, (64, 64), 512, 5, 2, samples=2),
    crowded=RoICase("crowded", 2, (9, 11), 3, 301, samples=2),
    crowd=crowd,
    batched=("rois", "offset", "mask"),
    resized=lambda regions: dataclasses.replace(CASE["pool"], regions=regions),
    spreads=(
        Spread("regions", SPREAD, REGIONS, P("data"), summed=("x",)),
        Spread("features", SPREAD, FEATURES, FEATURES["x"], summed=("offset", "mask")),
    ),
    whole=dict(x=P("model")),
    free=(free(deform_roi_pool, output_dim=4, trans_std=0.1), free(deform_roi_align)),
)
