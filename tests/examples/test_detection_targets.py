# SPDX-License-Identifier: MIT
"""Matching, choice and losses of a detector equal plain NumPy loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.detection.model.boxes import CONVENTIONS, STRIDES, anchors, overlaps
from examples.detection.model.detect import BOX_DEVIATIONS
from examples.detection.training.losses import (
    Truth,
    _sample,
    mask_of_region,
    region_losses,
    rpn_losses,
)
from examples.detection.training.targets import Matches, choose, match
from tests.examples.small_detectors import CLASSES, SMALL

NEW, SEED = CONVENTIONS["mmdet3"], CONVENTIONS["seed"]
RULES = pytest.mark.parametrize("rule", [NEW, SEED], ids=["mmdet3", "seed"])


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Flax's layers and optax multiply floats of different widths."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def random_boxes(count: int, seed: int, largest: float = 30) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + random.uniform(8, largest, (count, 2))], 1)


def overlap(a, b, rule) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + rule.extent
    height = min(a[3], b[3]) - max(a[1], b[1]) + rule.extent
    common = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0] + rule.extent) * (c[3] - c[1] + rule.extent) for c in (a, b)]
    return common / (sum(areas) - common)


def matched(boxes, objects, rule, positive, negative, best) -> list[int]:
    """The object of every box; -1 for a box that is to find nothing, -2 for one that is left out."""
    table = [[overlap(box, other, rule) for other in objects] for box in boxes]
    found = []
    for row in table:
        most = max(row, default=0.0)
        found.append(row.index(most) if most >= positive else -1 if most < negative else -2)
    for column in range(len(objects) if best is not None else 0):
        nearest = max(row[column] for row in table)
        for index, row in enumerate(table):
            if nearest >= best and row[column] == nearest:
                found[index] = column
    return found


def found_by_match(boxes, objects, real, rule, **options) -> list[int]:
    call = jax.jit(functools.partial(match, rule=rule, **options))
    got = call(*map(jnp.asarray, (boxes, objects, real)))
    kinds = np.where(got.positive, got.target, np.where(got.negative, -1, -2))
    assert not np.any(np.asarray(got.positive) & np.asarray(got.negative))
    return kinds.tolist()


@RULES
@pytest.mark.parametrize("best", [None, 0.3])
def test_matches_equal_the_loop(rule, best):
    boxes, objects = random_boxes(200, 0), random_boxes(6, 1)
    boxes[:10] = objects[np.arange(10) % 6] + np.linspace(-3, 3, 10)[:, None]
    real = np.arange(6) < 5
    expected = matched(boxes, objects[:5], rule, 0.7, 0.3, best)
    assert {-2, -1} < set(expected)
    got = found_by_match(boxes, objects, real, rule, positive=0.7, negative=0.3, best=best)
    assert got == expected


def test_nearest_box_of_two_objects_belongs_to_the_last():
    boxes = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    objects = np.array([[0.0, 0, 10, 5], [0, 0, 10, 6]])
    options = dict(positive=0.7, negative=0.3)
    got = found_by_match(boxes, objects, np.ones(2, bool), NEW, best=0.3, **options)
    assert got == matched(boxes, objects, NEW, 0.7, 0.3, 0.3) == [1, -1]
    assert found_by_match(boxes, objects, np.ones(2, bool), NEW, **options) == [-2, -1]


def test_every_box_of_an_image_without_objects_finds_nothing():
    boxes, objects = random_boxes(9, 2), np.zeros((3, 4))
    options = dict(positive=0.5, negative=0.5, best=0.5)
    got = found_by_match(boxes, objects, np.zeros(3, bool), SEED, **options)
    assert got == [-1] * 9


def test_boxes_that_cannot_be_used_are_left_out():
    boxes = random_boxes(9, 2)
    usable = jnp.arange(9) % 2 == 0
    got = found_by_match(
        boxes, boxes, np.ones(9, bool), NEW, positive=0.9, negative=0.9, best=0.1, usable=usable
    )
    assert [kind == -2 for kind in got] == [not use for use in usable]


@pytest.mark.parametrize(("positives", "negatives"), [(20, 30), (3, 30), (20, 5), (0, 4), (2, 0)])
def test_choice_is_of_boxes_of_their_kind_and_positive_ones_come_first(positives, negatives):
    kind = np.random.default_rng(0).permutation([1] * positives + [0] * negatives + [-1] * 10)
    matches = Matches(jnp.zeros(len(kind), int), jnp.asarray(kind == 1), jnp.asarray(kind == 0))
    got = jax.jit(choose, static_argnums=(2, 3))(jax.random.key(0), matches, 16, 4)
    index, positive, valid = map(np.asarray, got)
    chosen = min(positives, 4)
    assert positive.sum() == chosen and np.all(positive[:chosen])
    assert valid.sum() == chosen + min(negatives, 16 - chosen)
    assert len(set(index[valid])) == valid.sum()
    np.testing.assert_array_equal(kind[index[positive]], 1)
    np.testing.assert_array_equal(kind[index[valid & ~positive]], 0)


def test_every_box_is_chosen_equally_often():
    matches = Matches(jnp.zeros(12, int), jnp.arange(12) < 6, jnp.arange(12) >= 6)
    keys = jax.random.split(jax.random.key(1), 2000)
    index = jax.jit(jax.vmap(lambda key: choose(key, matches, 6, 2).index))(keys)
    counts = np.bincount(np.asarray(index).ravel(), minlength=12)
    # Of 2000 draws a third (two of six) and two thirds (four of six): five standard deviations.
    np.testing.assert_allclose(counts, [2000 / 3] * 6 + [4000 / 3] * 6, atol=5 * 21.1)


def encoded(box, target, deviations, rule) -> np.ndarray:
    size, goal = (np.array([b[2] - b[0], b[3] - b[1]]) + rule.extent for b in (box, target))
    middle, goal_middle = (np.array([b[0] + b[2], b[1] + b[3]]) / 2 for b in (box, target))
    moves = np.concatenate([(goal_middle - middle) / size, np.log(goal / size)])
    return moves / np.array(deviations)


def bent(errors, bend) -> float:
    sizes = np.abs(errors)
    return sum(s**2 / (2 * bend) if s < bend else s - bend / 2 for s in sizes)


def in_padded_image(shapes, size) -> np.ndarray:
    """Which anchors mmdetection 3 trains: those of cells in the image, padded to multiples of 32."""
    height, width = (-(-length // 32) * 32 for length in size)
    cells = [
        y * stride < height and x * stride < width
        for shape, stride in zip(shapes, STRIDES, strict=True)
        for y, x in np.ndindex(*shape)
    ]
    return np.repeat(cells, 3)


@RULES
def test_losses_of_all_anchors_equal_the_loop(rule):
    random = np.random.default_rng(3)
    shapes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    rpn = [
        (random.normal(size=(2, *shape, 3)), random.normal(0, 0.2, (2, *shape, 12)))
        for shape in shapes
    ]
    objects = np.stack([random_boxes(3, 4), random_boxes(3, 5)])
    labels = np.array([[0, 2, 1], [1, -1, -1]])
    image_sizes = [(64, 80), (60, 34)]  # A fifth of the canvas is beyond the second.
    every = np.concatenate(
        [anchors(*s, stride, rule) for s, stride in zip(shapes, STRIDES, strict=True)]
    )

    classes, moves, count = 0.0, 0.0, 0
    for image in range(2):
        real = objects[image][labels[image] >= 0]
        usable = in_padded_image(shapes, image_sizes[image])
        if rule is SEED:
            last = np.array(image_sizes[image][::-1])
            usable = np.all((every[:, :2] >= 0) & (every[:, 2:] < last), axis=1)
        kinds = np.full(len(every), -2)
        kinds[usable] = matched(every[usable], real, rule, 0.7, 0.3, 0.3)
        count += max(np.sum(kinds >= 0), 1) + max(np.sum(kinds == -1), 1)
        logits = np.concatenate([level[0][image].reshape(-1) for level in rpn])
        deltas = np.concatenate([level[1][image].reshape(-1, 4) for level in rpn])
        for box, kind, logit, delta in zip(every, kinds, logits, deltas, strict=True):
            if kind >= -1:
                classes += np.log1p(np.exp(-logit if kind >= 0 else logit))
            if kind >= 0:
                error = delta - encoded(box, real[kind], (1, 1, 1, 1), rule)
                moves += bent(error, 1 / 9) if rule is SEED else np.abs(error).sum()
    assert moves > 0

    # More places than anchors: all are chosen.
    truth = Truth(jnp.asarray(objects), jnp.asarray(labels), None)
    maps = [tuple(map(jnp.asarray, level)) for level in rpn]
    keys = jax.random.split(jax.random.key(0), 2)
    sizes = jnp.asarray(image_sizes, float)
    call = jax.jit(rpn_losses, static_argnums=(3, 4))
    got = call(maps, sizes, truth, rule, 2 * len(every), keys)
    np.testing.assert_allclose(got["rpn_class"], classes / count, rtol=1e-6)
    np.testing.assert_allclose(got["rpn_box"], moves / count, rtol=1e-6)


def test_an_image_without_objects_counts_one_positive_anchor():
    shapes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    rpn = [(jnp.zeros((1, *shape, 3)), jnp.zeros((1, *shape, 12))) for shape in shapes]
    truth = Truth(jnp.zeros((1, 2, 4)), jnp.full((1, 2), -1), None)
    sizes, keys = jnp.array([[64.0, 80.0]]), jax.random.split(jax.random.key(0), 1)
    got = jax.jit(rpn_losses, static_argnums=(3, 4))(rpn, sizes, truth, NEW, 256, keys)
    np.testing.assert_allclose(got["rpn_class"], 256 * np.log(2) / 257, rtol=1e-6)
    assert got["rpn_box"] == 0


def test_an_image_too_narrow_for_any_anchor_has_no_loss():
    shapes = [(3, 334), (2, 167), (1, 84), (1, 42), (1, 21)]
    rpn = [(jnp.ones((1, *shape, 3)), jnp.ones((1, *shape, 12))) for shape in shapes]
    truth = Truth(jnp.array([[[5.0, 2, 600, 9]]]), jnp.array([[1]]), None)
    sizes, keys = jnp.array([[11.0, 1333.0]]), jax.random.split(jax.random.key(0), 1)
    got = jax.jit(rpn_losses, static_argnums=(3, 4))(rpn, sizes, truth, SEED, 256, keys)
    assert got["rpn_class"] == got["rpn_box"] == 0


def test_architectures_train_as_mmdetection_configures_them():
    names = ("candidates", "proposals", "training_candidates", "training_proposals")
    faster, cascade = (
        dataclasses.replace(SMALL, model=name).rule for name in ("faster", "cascade")
    )
    assert [getattr(faster, name) for name in names] == [1000, 1000, 2000, 1000]
    assert [getattr(cascade, name) for name in names] == [1000, 1000, 2000, 2000]
    assert cascade.anchors_inside and not faster.anchors_inside
    training = dataclasses.replace(SMALL, model="cascade").build(CLASSES).training_rule
    assert (training.candidates, training.proposals) == (2000, 2000)
    few = dataclasses.replace(SMALL, model="cascade", candidates=7).rule
    assert [getattr(few, name) for name in names] == [7] * 4


def softmax_loss(logits, label) -> float:
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


@pytest.mark.parametrize("model", ["mask", "cascade"])
def test_losses_of_all_regions_equal_the_loop(model):
    architecture = dataclasses.replace(SMALL, model=model)
    detector, rule = architecture.build(CLASSES, seed=3), architecture.rule
    random = np.random.default_rng(5)
    for head in detector.roi_head.box_heads:
        for layer in (head.fc_cls, head.fc_reg):
            layer.kernel[...] = jnp.asarray(random.normal(0, 0.3, layer.kernel.shape), jnp.float32)
    pyramid = [
        jnp.asarray(random.normal(size=(2, n, n, 8)), jnp.float32) for n in (24, 12, 6, 3, 2)
    ]
    objects = np.stack([random_boxes(3, 6), random_boxes(3, 7)]).astype(np.float32)
    labels = np.array([[0, 2, 1], [1, -1, -1]])
    near = objects[:, [0, 1, 2, 0, 1]] + random.normal(0, 1.5, (2, 5, 4))
    boxes = np.concatenate([near, np.stack([random_boxes(7, 8), random_boxes(7, 9)])], 1)
    boxes = boxes.astype(np.float32)
    masks = random.random((2, 3, 112, 112)) < 0.5
    truth = Truth(*map(jnp.asarray, (objects, labels, masks)))
    valid = np.arange(12) < 11
    keys = jax.random.split(jax.random.key(0), 2)
    got = nnx.jit(region_losses, static_argnums=5)(
        detector,
        pyramid,
        (jnp.asarray(boxes), jnp.asarray(np.tile(valid, (2, 1)))),
        jnp.asarray([[96.0, 96], [96, 96]], jnp.float32),
        truth,
        96,  # A quarter of which is more than the positive regions.
        keys,
    )
    kinds = []
    for of_image, own, boxes_of_image in zip(labels, objects, boxes, strict=True):
        real = own[of_image >= 0]
        best = 0.5 if rule.best_region else None
        found = matched(boxes_of_image, real, rule, 0.5, 0.5, best)
        kinds.append([*range(len(real)), *[-2] * (3 - len(real)), *found])
    kinds = np.array(kinds)
    boxes = np.concatenate([objects, boxes], 1)
    valid = np.concatenate([labels >= 0, np.tile(valid, (2, 1))], 1)
    rois = jnp.asarray(boxes)
    pooled = nnx.jit(detector.roi_head.bbox_roi_extractor)(pyramid, rois, jnp.asarray(valid))
    logits, deltas = map(np.asarray, nnx.jit(detector.roi_head.box_heads[0])(pooled))
    classes = moves = 0.0
    for row, (image, index) in enumerate(np.ndindex(2, 15)):
        kind = kinds[image, index]
        if valid[image, index]:
            label = labels[image][kind] if kind >= 0 else CLASSES
            classes += softmax_loss(logits[row].astype(float), label)
            if kind >= 0:
                goal = encoded(boxes[image, index], objects[image][kind], BOX_DEVIATIONS[0], rule)
                error = deltas[row][label if model == "mask" else 0] - goal
                moves += bent(error, 1.0) if model == "cascade" else np.abs(error).sum()
    suffix = "_0" if model == "cascade" else ""
    assert (kinds[:, 3:14] >= 0).sum() > 4
    np.testing.assert_allclose(got[f"class{suffix}"], classes / 26, rtol=1e-4)
    np.testing.assert_allclose(got[f"box{suffix}"], moves / 26, rtol=1e-4)
    if model == "cascade":
        assert set(got) == {f"{kind}_{stage}" for kind in ("class", "box") for stage in range(3)}
    else:
        assert np.isfinite(got["mask"]) and got["mask"] > 0.5


def test_the_nearest_region_finds_its_object_though_objects_are_regions():
    objects, proposal = [[0.0, 0, 100, 100], [0, 35, 100, 135]], [[0.0, 13, 100, 113]]
    truth = Truth(jnp.array([objects]), jnp.array([[0, 1]]), None)
    rule = dataclasses.replace(SMALL, model="mask").rule
    keys = jax.random.split(jax.random.key(0), 1)
    regions = jnp.array([proposal]), jnp.ones((1, 1), bool)
    got = _sample(regions, truth, rule, 0, 12, keys)
    found = {
        tuple(map(float, box)): int(row)
        for box, row in zip(got.boxes[0], got.objects[0], strict=True)
    }
    assert found == {tuple(objects[0]): 0, tuple(objects[1]): 1, tuple(proposal[0]): 1}


def test_every_head_of_a_cascade_gets_the_objects_and_no_moved_objects():
    architecture = dataclasses.replace(SMALL, model="cascade")
    detector = architecture.build(CLASSES, seed=3)
    random = np.random.default_rng(5)
    for head in detector.roi_head.box_heads:
        head.fc_reg.bias[...] = jnp.full(head.fc_reg.bias.shape, 9.0)
        head.fc_cls.kernel[...] = jnp.asarray(
            random.normal(0, 0.3, head.fc_cls.kernel.shape), jnp.float32
        )
    pyramid = [
        jnp.asarray(random.normal(size=(1, n, n, 8)), jnp.float32) for n in (24, 12, 6, 3, 2)
    ]
    objects, labels = jnp.asarray(random_boxes(2, 6), jnp.float32)[None], jnp.array([[2, 1]])
    none = jnp.zeros((1, 5, 4)), jnp.zeros((1, 5), bool)
    got = nnx.jit(region_losses, static_argnums=5)(
        detector,
        pyramid,
        none,
        jnp.full((1, 2), 96.0),
        Truth(objects, labels, None),
        16,
        jax.random.split(jax.random.key(0), 1),
    )
    # Inside `jit`, the regions of a level may belong to no image: their values are not known.
    extract = nnx.jit(detector.roi_head.bbox_roi_extractor)
    pooled = extract(pyramid, objects, jnp.ones((1, 2), bool))
    for stage, weight in ((1, 0.5), (2, 0.25)):
        logits = np.asarray(detector.roi_head.box_heads[stage](pooled)[0], np.float64)
        expected = np.mean([softmax_loss(*pair) for pair in zip(logits, (2, 1), strict=True)])
        np.testing.assert_allclose(got[f"class_{stage}"], weight * expected, rtol=1e-4)
        assert got[f"box_{stage}"] > 0


@RULES
def test_mask_of_a_region_is_the_part_of_the_objects_mask_that_is_in_the_region(rule):
    # An object at (10, 20) to (50, 100), whose mask is everything left of x = 30.
    mask = np.zeros((1, 112, 112), bool)
    mask[0, :, :56] = True
    target = jnp.array([10.0, 20, 50 - rule.extent, 100 - rule.extent])
    cut_out = jax.jit(mask_of_region, static_argnums=(4, 5))
    for box, expected in (
        ((10, 20, 50, 100), (0, 14)),  # The object: the left half.
        ((20, 0, 40, 60), (0, 14)),
        ((30, 20, 50, 100), (0, 0)),
        ((0, 20, 20, 100), (14, 28)),  # Its left half is beside the object.
    ):
        region = jnp.array(box) - jnp.array([0, 0, rule.extent, rule.extent])
        cut = np.asarray(cut_out(jnp.asarray(mask), jnp.int32(0), target, region, 28, rule))
        columns = np.flatnonzero(cut.any(0))
        assert (columns[0], columns[-1] + 1) == expected if expected[1] else not columns.size
        if box[1] == 0:  # A third of the region is above the object.
            assert np.flatnonzero(cut.any(1))[0] == round(28 / 3)


@RULES
def test_overlaps_equal_the_loop(rule):
    a, b = random_boxes(5, 10), random_boxes(5, 11)
    intersection, union = overlaps(jnp.asarray(a), jnp.asarray(b), rule)
    expected = [overlap(*pair, rule) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(intersection / union, expected, rtol=1e-12)
