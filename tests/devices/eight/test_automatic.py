# SPDX-License-Identifier: MIT
"""`deform_conv2d` on several devices, split by `jit` along channels, groups and several axes at once.

Each case compiles a program and reads its collectives, since numbers come out right without any
splitting, too: everything is gathered then, and a device more makes nothing faster.
"""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.deform_conv2d.cases import ARGUMENTS, Case
from tests.deform_conv2d.row import FEATURES, IMAGES, SPREAD
from tests.devices.collectives import Collective, collectives
from tests.devices.meshes import gradients, operator, place, spec_of

OFFSET_GROUPS = Case("offset_groups", 4, (6, 5), 12, 10, offset_groups=2)


def run(f, placed, alone) -> tuple[list[Collective], list[P | None]]:
    """The collectives of `f` and how its results are split; they must be those of one device."""
    program = jax.jit(f).lower(*placed).compile()
    results = program(*placed)
    for result, expected in zip(jax.tree.leaves(results), jax.tree.leaves(f(*alone)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    return collectives(program), [spec_of(result) for result in jax.tree.leaves(results)]


def test_batch_and_output_channels_split_at_once():
    placed = place(SPREAD, **IMAGES, **FEATURES)
    sent, (spec,) = run(operator(SPREAD), placed, SPREAD.arrays())
    assert sent == [] and spec == P("data", None, None, "model")
    sent, _ = run(gradients(SPREAD), placed, SPREAD.arrays())
    assert {c.kind for c in sent} == {"all-reduce"}
    assert {c.shapes[0] for c in sent} == {(1, 6, 5, 8), (3, 2, 8, 6)}


def test_split_input_channels_are_summed_like_a_matrix_product():
    placed = place(SPREAD, x=P(None, None, None, "model"), kernel=P(None, None, "model"))
    (sums,), _ = run(operator(SPREAD), placed, SPREAD.arrays())
    assert sums.kind == "all-reduce" and sums.shapes == ((4, *SPREAD.output, 12),)
    sent, specs = run(gradients(SPREAD), placed, SPREAD.arrays())
    # All channels are displaced alike: the gradients of offset and mask are sums over them.
    (sums,) = sent
    assert sums.shapes == ((4, *SPREAD.output, 1, 6, 2), (4, *SPREAD.output, 1, 6))
    assert specs[:2] == [P(None, None, None, "model"), P(None, None, "model")]


def test_offset_groups_split_with_their_channels():
    channels = P(None, None, None, "model")
    placed = place(OFFSET_GROUPS, x=channels, offset=channels, mask=channels)
    (sums,), _ = run(operator(OFFSET_GROUPS), placed, OFFSET_GROUPS.arrays())
    assert sums.kind == "all-reduce" and sums.shapes == ((4, *OFFSET_GROUPS.output, 10),)
    sent, specs = run(gradients(OFFSET_GROUPS), placed, OFFSET_GROUPS.arrays())
    assert sent == [] and specs[0] == specs[2] == specs[3] == channels


@pytest.mark.parametrize("offset_groups", [1, 2])
def test_feature_groups_split_without_communication_where_they_divide(offset_groups):
    case = Case("g", 4, (6, 5), 12, 20, feature_group_count=4, offset_groups=offset_groups)
    groups = P(None, None, None, "model")
    placed = place(case, x=groups, kernel=groups, bias=P("model"))
    sent, (spec,) = run(operator(case), placed, case.arrays())
    assert sent == [] and spec == groups
    sent, specs = run(gradients(case), placed, case.arrays())
    assert all(c.shapes[0] == (4, *case.output, 1, 9, 2) for c in sent)  # of the shared offsets
    assert len(sent) == (offset_groups == 1) and specs[0] == specs[1] == groups


def test_groups_that_do_not_divide_are_gathered():
    case = Case("g", 2, (4, 5), 12, 6, feature_group_count=3)
    groups = P(None, None, None, "model")
    sent, _ = run(operator(case), place(case, x=groups, kernel=groups), case.arrays())
    assert {c.kind for c in sent} == {"all-gather"}


@pytest.mark.parametrize("names", [("x",), ("x", "kernel"), ("kernel",)], ids=" ".join)
def test_channels_of_fewer_offset_groups_than_devices_are_gathered(names):
    specs = dict(x=P(None, None, None, "data"), kernel=P(None, None, "data"))
    placed = place(OFFSET_GROUPS, **{name: specs[name] for name in names})
    for f in (operator(OFFSET_GROUPS), gradients(OFFSET_GROUPS)):
        sent, _ = run(f, placed, OFFSET_GROUPS.arrays())
        assert "all-gather" in {c.kind for c in sent}


@pytest.mark.parametrize(
    ("specs", "gathered"),
    [
        (dict(x=P("data"), offset=P("model")), ["y"]),
        (dict(x=P(None, None, None, "model"), kernel=P(None, None, None, "model")), ["x"]),
        (
            dict(x=P("model", None, None, "data"), kernel=P(None, None, "model", "data")),
            ["x", "kernel"],
        ),
        (
            dict(x=P(None, "data", "model"), bias=P("data"), mask=P(*[None] * 4, "model")),
            ["x", "x", "mask"],
        ),
    ],
    ids=["batch", "channels", "crossed", "whole_axes"],
)
def test_conflicting_shardings_are_resolved(specs, gathered):
    case = Case("conflict", 4, (8, 6), 8, 12, kernel=(2, 2))
    sent, _ = run(operator(case), place(case, **specs), case.arrays())
    sizes = dict(zip(ARGUMENTS, (array.nbytes for array in case.arrays()), strict=True))
    sizes["y"] = case.cotangent().nbytes
    gathers = [c for c in sent if c.kind == "all-gather"]
    # Of each array at most what it has; what only changes its device besides.
    assert len(gathers) == len(gathered) and {c.kind for c in sent} <= {
        "all-gather",
        "collective-permute",
    }
    assert sum(c.bytes for c in gathers) <= sum(sizes[name] for name in gathered)
    run(gradients(case), place(case, **specs), case.arrays())
