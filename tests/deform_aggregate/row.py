# SPDX-License-Identifier: MIT
"""The row of `deform_aggregate` in the table of the laws."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_dcn import dcnv3, dcnv4, deform_aggregate, grid_sample, ms_deform_attn, reference
from tests.deform_aggregate import refusals
from tests.deform_aggregate.cases import ARGUMENTS, CASES, AggregateCase
from tests.laws import loops
from tests.laws.operator import Free, Operator, Spot, Spread

CASE = {case.name: case for case in CASES}


def cases(*names: str) -> tuple[AggregateCase, ...]:
    return tuple(CASE[name] for name in names)


def plain_jax(case: AggregateCase):
    f = functools.partial(reference.deform_aggregate, geometry=case.geometry)

    def g(x, positions, weights):
        none = jnp.zeros((*positions.shape[:-2], 0), positions.dtype)
        return f(x, positions, none if weights is None else weights)

    return g


def plain_loops(case: AggregateCase, x, positions, weights) -> np.ndarray:
    y = np.zeros((case.batch, case.queries, case.channels))
    for n, q, c in np.ndindex(*y.shape):
        group, pixel, sample = c // case.group_channels, 0, 0
        for (height, width), points in zip(case.shapes, case.points, strict=True):
            image = x[n, pixel : pixel + height * width, c].reshape(height, width)
            for t in range(sample, sample + points):
                weight = 1.0 if weights is None else weights[n, q, group, t]
                value = loops.read(image, *positions[n, q, group, t], case.boundary == "legacy")
                y[n, q, c] += weight * value
            pixel, sample = pixel + height * width, sample + points
    return y


def half(arrays: tuple, dtype: str) -> tuple:
    """Maps in 16 bits; positions and weights wider, as they may be."""
    return arrays[0].astype(dtype), *arrays[1:]


def smooth(arrays: tuple) -> tuple:
    """Positions away from whole numbers, where the function has corners."""
    x, positions, weights = arrays
    return x, np.floor(positions) + 0.25 + (positions - np.floor(positions)) / 2, weights


SAMPLE = (1, 4, 2, 3)  # Image, query, group and sample: the first sample of the last map.


def inside(arrays: tuple) -> tuple:
    arrays[1][SAMPLE] = [0.3, -0.4]
    return arrays


def spot(axis: int) -> Spot:
    case = CASE["levels"]
    query, channels = SAMPLE[:2], slice(2 * case.group_channels, 3 * case.group_channels)
    reached = dict(y=(*query, channels), positions=SAMPLE, weights=SAMPLE)
    return Spot(case, (*SAMPLE, axis), reached, inside)


def crowd(arrays: tuple) -> tuple:
    return arrays[0], np.full_like(arrays[1], 1.3), arrays[2]


def free_attention(implementation: str) -> Callable:
    return functools.partial(
        ms_deform_attn, spatial_shapes=((4, 5), (2, 3)), implementation=implementation
    )


def free_maps(f: Callable, **options) -> Callable[[str], Callable]:
    """A function of maps of free size, which the native kernels do not take: `None` takes XLA."""

    def made(implementation: str) -> Callable:
        name = None if implementation == "native" else implementation
        return functools.partial(f, **options, implementation=name)

    return made


def halved(n, h, w) -> tuple:
    """The shapes of offset and mask of half the size."""
    samples = (n, -(-h // 2), -(-w // 2), 2, 9)
    return (*samples, 2), samples


SPREAD = AggregateCase("spread", 4, ((3, 4), (2, 3)), (1, 3), 8, 2, 6)
QUERIES = dict(positions=P(None, "data"), weights=P(None, "data"))
GROUPS = dict.fromkeys(ARGUMENTS, P(None, None, "model"))

OPERATOR = Operator(
    name="deform_aggregate",
    call=deform_aggregate,
    arguments=ARGUMENTS,
    displaced="positions",
    constant=(),
    cases=tuple(CASES),
    float32_cases=cases("levels", "wide_groups"),
    xla_cases=cases("levels"),
    difference_cases=cases("levels", "not_weighted"),
    half_cases=cases("levels", "wide_groups"),
    loop_cases=tuple(CASES),
    small=refusals.SMALL,
    tiny=AggregateCase("tiny", 1, ((2, 3), (1, 2)), (1, 1), 2, 2, 1),
    reference=plain_jax,
    loops=plain_loops,
    half=half,
    wide=("positions", "weights"),
    smooth=smooth,
    mapped=("x", "positions", "weights", "positions weights", "x positions weights"),
    spots=(spot(0), spot(1)),
    good=refusals.GOOD,
    wrong=refusals.WRONG,
    attributes=refusals.ATTRIBUTES,
    refused=refusals.REFUSED,
    busy=AggregateCase("busy", 2, ((31, 29), (13, 11)), (4, 3), 501, 4, 33),
    shared=AggregateCase("shared", 1, ((64, 64),), (3,), 11, 4, 128),
    crowded=AggregateCase("crowded", 2, ((4, 5), (3, 2)), (3, 2), 301, 2, 3),
    crowd=crowd,
    batched=("x", "positions", "weights"),
    resized=lambda batch: dataclasses.replace(CASE["levels"], batch=batch),
    spreads=(
        Spread("images", SPREAD, dict.fromkeys(ARGUMENTS, P("data")), P("data")),
        Spread("queries", SPREAD, QUERIES, P(None, "data"), summed=("x",)),
        Spread("groups", SPREAD, GROUPS, P(None, None, "model")),
        Spread(
            "channels",
            dataclasses.replace(SPREAD, groups=1),
            dict(x=P(None, None, "model")),
            P(None, None, "model"),
            summed=("positions", "weights"),
        ),
        Spread(
            "queries_and_groups",
            SPREAD,
            dict(x=GROUPS["x"]) | dict.fromkeys(ARGUMENTS[1:], P(None, "data", "model")),
            P(None, "data", "model"),
            summed=("x",),
        ),
    ),
    whole=dict(x=P(None, "model"), positions=P(None, None, None, "model")),
    free=(
        Free(
            free_attention,
            lambda n, q: ((n, 26, 2, 3), (n, q, 2, 2, 3, 2), (n, q, 2, 2, 3)),
            (dict(n=2, q=3), dict(n=1, q=7)),
        ),
        Free(
            free_maps(grid_sample, padding_mode="reflection"),
            lambda n, h, w, ho, wo: ((n, h, w, 3), (n, ho, wo, 2)),
            (dict(n=2, h=4, w=5, ho=3, wo=6), dict(n=1, h=7, w=2, ho=1, wo=2)),
        ),
        Free(
            free_maps(dcnv3, strides=2, offset_scale=1.5),
            lambda n, h, w: ((n, h, w, 4), *halved(n, h, w)),
            (dict(n=2, h=4, w=5), dict(n=1, h=7, w=2)),
        ),
        Free(
            free_maps(dcnv4, groups=2, softmax=True),
            lambda n, h, w: ((n, h, w, 4), (n, h, w, 56)),
            (dict(n=2, h=4, w=5), dict(n=1, h=7, w=2)),
        ),
    ),
)
