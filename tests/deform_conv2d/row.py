# SPDX-License-Identifier: MIT
"""The row of `deform_conv2d` in the table of the laws."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_dcn import deform_conv2d, reference
from jax_dcn._src.deform_conv2d.samples import all_positions
from tests.deform_conv2d import refusals
from tests.deform_conv2d.cases import ARGUMENTS, CASES, WORKLOADS, Case
from tests.laws import loops
from tests.laws.operator import Free, Operator, Spot, Spread

CASE = {case.name: case for case in CASES}


def cases(*names: str) -> tuple[Case, ...]:
    return tuple(CASE[name] for name in names)


def plain_jax(case: Case):
    def f(x, kernel, offset, mask, bias):
        mask = jnp.zeros((*offset.shape[:-2], 0), offset.dtype) if mask is None else mask
        return reference.deform_conv2d(x, kernel, offset, mask, bias, geometry=case.geometry)

    return f


def plain_loops(case: Case, *arrays) -> np.ndarray:
    (top, _), (left, _) = case.geometry.padding
    return loops.deform_conv2d(
        *arrays,
        strides=case.strides,
        padding=(top, left),
        kernel_dilation=case.kernel_dilation,
        groups=case.feature_group_count,
        legacy=case.boundary == "legacy",
    )


def half(arrays: tuple, dtype: str) -> tuple:
    """Images, kernel and bias in 16 bits; offsets and masks wider, as they may be."""
    x, kernel, offset, mask, bias = arrays
    return x.astype(dtype), kernel.astype(dtype), offset, mask, bias.astype(dtype)


def smooth(arrays: tuple) -> tuple:
    """Offsets without a whole coordinate, where the function has corners."""
    fraction = np.random.default_rng(5).uniform(0.1, 0.9, arrays[2].shape)
    return (*arrays[:2], np.floor(arrays[2]) + fraction, *arrays[3:])


CROWDED = Case("crowded", 2, (13, 11), 3, 4, kernel=(3, 2), padding="SAME")


def crowd(arrays: tuple) -> tuple:
    regular = all_positions(jnp.zeros(arrays[2].shape), CROWDED.kernel, CROWDED.geometry)
    return (*arrays[:2], np.asarray([5.3, 4.6] - np.asarray(regular), arrays[2].dtype), *arrays[3:])


SMALL = Case(
    "small",
    batch=2,
    image=(4, 3),
    channels=4,
    features=6,
    kernel=(2, 1),
    strides=(1, 2),
    padding=((1, 0), (0, 1)),
    feature_group_count=2,
    offset_groups=4,
)
# Image, row, column, offset group and tap of a sample inside the image.
SAMPLE = (1, 3, 2, 0, 4)


def inside(arrays: tuple) -> tuple:
    arrays[2][SAMPLE] = 0.25
    return arrays


def spots(case: Case) -> list[Spot]:
    reached = dict(
        y=SAMPLE[:3], offset=SAMPLE, mask=SAMPLE, kernel=divmod(SAMPLE[4], case.kernel[1])
    )
    return [Spot(case, (*SAMPLE, axis), reached, inside) for axis in (0, 1)]


# On CPU, samples outside the image are multiplied, or with many channels left out.
SPOTS = [
    spot
    for boundary in ("padded", "legacy")
    for channels in (5, 40)
    for spot in spots(
        Case(f"{boundary}_{channels}", 2, (7, 9), channels, 4, kernel=(3, 2), boundary=boundary)
    )
]

EXPORTED = Case("exported", 3, (6, 5), 4, 6, kernel=(3, 2), offset_groups=2)


def free(padding, strides: tuple[int, int], output) -> Free:
    def shapes(n, h, w):
        samples = (n, *(output(*axis) for axis in zip((h, w), strides, strict=True)), 2, 6)
        return (n, h, w, 4), (3, 2, 4, 6), (*samples, 2), samples, (6,)

    options = dict(padding=padding, strides=strides)
    return Free(
        lambda implementation: functools.partial(
            deform_conv2d, **options, implementation=implementation
        ),
        shapes,
        (dict(n=2, h=7, w=6), dict(n=1, h=4, w=11)),
    )


SPREAD = Case("spread", 4, (6, 5), 8, 12, kernel=(3, 2))
IMAGES = dict.fromkeys(("x", "offset", "mask"), P("data"))
FEATURES = dict(kernel=P(None, None, None, "model"), bias=P("model"))

OPERATOR = Operator(
    name="deform_conv2d",
    call=deform_conv2d,
    arguments=ARGUMENTS,
    displaced="offset",
    constant=(),
    cases=tuple(CASES),
    float32_cases=tuple(CASES),
    xla_cases=cases(
        "plain",
        "version_1",
        "every_option",
        "groups_do_not_divide",
        "legacy",
        "depthwise",
        "one_pixel",
        "empty_batch",
    ),
    difference_cases=cases("plain", "every_option", "legacy", "depthwise", "one_by_one"),
    half_cases=cases("plain", "every_option", "legacy", "depthwise", "wide"),
    loop_cases=cases("plain", "every_option", "legacy", "depthwise", "version_1"),
    small=SMALL,
    tiny=Case("tiny", 1, (3, 2), 2, 2, kernel=(1, 2), padding="SAME"),
    reference=plain_jax,
    loops=plain_loops,
    half=half,
    wide=("offset", "mask"),
    smooth=smooth,
    mapped=(*ARGUMENTS, "x offset mask", "x kernel", " ".join(ARGUMENTS)),
    spots=tuple(SPOTS),
    good=refusals.GOOD,
    wrong=refusals.WRONG,
    attributes=refusals.ATTRIBUTES,
    refused=refusals.REFUSED,
    busy=WORKLOADS[7],
    shared=Case("shared", 1, (64, 64), 512, 3, kernel=(1, 2), padding="SAME"),
    crowded=CROWDED,
    crowd=crowd,
    batched=("x", "offset", "mask"),
    resized=lambda images: dataclasses.replace(EXPORTED, batch=images),
    free=(
        free("SAME", (2, 3), lambda size, stride: -(-size // stride)),
        free("same_lower", (2, 3), lambda size, stride: -(-size // stride)),
        free(((1, 1), (0, 1)), (1, 1), lambda size, stride: size),
    ),
    spreads=(
        Spread("images", SPREAD, IMAGES, P("data"), summed=("kernel", "bias")),
        Spread("features", SPREAD, FEATURES, FEATURES["kernel"], summed=("x", "offset", "mask")),
    ),
    whole=dict(x=P(None, "model"), offset=P(None, None, "model")),
)
