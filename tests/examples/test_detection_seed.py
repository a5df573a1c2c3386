# SPDX-License-Identifier: MIT
"""The conventions of the original's branch equal NumPy loops written from their description."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.detection.data.masks import paste
from examples.detection.model.boxes import (
    CONVENTIONS,
    STRIDES,
    anchors,
    clip,
    decode,
    encode,
    levels,
    suppress,
)
from examples.detection.model.detect import propose
from examples.detection.model.networks import RoIExtractor

SEED, NEW = CONVENTIONS["seed"], CONVENTIONS["mmdet3"]
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)

# Of one pixel of a level, by stride: printed by the original and by mmdetection 3.3.
SEED_ANCHORS = {
    4: [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]],
    8: [[-41, -19, 48, 26], [-28, -28, 35, 35], [-19, -41, 26, 48]],
    64: [[-330, -149, 393, 212], [-224, -224, 287, 287], [-149, -330, 212, 393]],
}
NEW_ANCHORS = [[-22.627, -11.314, 22.627, 11.314], [-16, -16, 16, 16]]


def random_boxes(count: int, seed: int = 0, largest: float = 90) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(-10, 60, (count, 2))
    return np.concatenate([corner, corner + random.uniform(1, largest, (count, 2))], 1)


def decoded(box, delta, deviations, height, width) -> list[float]:
    """A box of the seed, moved, and cut at the edges of the image."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = np.multiply(delta, deviations)
    limit = abs(math.log(16 / 1000))
    centre_x, centre_y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
    w *= math.exp(min(max(dw, -limit), limit))
    h *= math.exp(min(max(dh, -limit), limit))
    return [
        min(max(centre_x - w / 2 + 0.5, 0), width - 1),
        min(max(centre_y - h / 2 + 0.5, 0), height - 1),
        min(max(centre_x + w / 2 - 0.5, 0), width - 1),
        min(max(centre_y + h / 2 - 0.5, 0), height - 1),
    ]


def overlap(a, b) -> float:
    """Intersection over union with the seed's areas."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = max(w, 0) * max(h, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return both / (sum(areas) - both)


def kept(boxes, scores, threshold) -> list[int]:
    """The boxes that no better one suppresses, best first."""
    result = []
    for index in np.argsort(-scores, kind="stable"):
        if all(overlap(boxes[index], boxes[better]) <= threshold for better in result):
            result.append(int(index))
    return result


@pytest.mark.parametrize("stride", SEED_ANCHORS)
def test_anchors_are_the_published_ones_shifted_by_whole_strides(stride):
    found = anchors(2, 3, stride, SEED).reshape(2, 3, 3, 4)
    for y, x, kind in itertools.product(range(2), range(3), range(3)):
        shift = np.array([x, y, x, y]) * stride
        np.testing.assert_array_equal(found[y, x, kind], shift + SEED_ANCHORS[stride][kind])


def test_new_anchors_lie_around_the_corner_of_a_pixel():
    found = anchors(2, 3, 4, NEW).reshape(2, 3, 3, 4)
    np.testing.assert_allclose(found[0, 0, :2], NEW_ANCHORS, atol=1e-3)
    np.testing.assert_allclose(found[1, 2, :2] - found[0, 0, :2], [[8, 4, 8, 4]] * 2, atol=1e-5)


def test_decoded_boxes_equal_the_loop():
    boxes, deltas = random_boxes(40), np.random.default_rng(1).normal(0, 8, (40, 4))
    found = decode(jnp.asarray(boxes), jnp.asarray(deltas), DEVIATIONS, SEED)
    found = clip(found, jnp.asarray([50.0, 80.0]), SEED)
    expected = [decoded(*pair, DEVIATIONS, 50, 80) for pair in zip(boxes, deltas, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", CONVENTIONS.values(), ids=CONVENTIONS)
def test_encoding_is_the_inverse_of_decoding(rule):
    boxes, targets = random_boxes(9), random_boxes(9, seed=2)
    deltas = encode(jnp.asarray(boxes), jnp.asarray(targets), DEVIATIONS, rule)
    np.testing.assert_allclose(
        decode(jnp.asarray(boxes), deltas, DEVIATIONS, rule), targets, rtol=1e-12
    )


@pytest.mark.parametrize(("rule", "extent"), [(SEED, 1), (NEW, 0)], ids=["seed", "mmdet3"])
def test_level_of_a_region_is_the_logarithm_of_its_side(rule, extent):
    sides = np.array([3.0, 55.5, 111.5, 112.5, 223.5, 300, 447.5, 448.5, 2000])
    boxes = np.stack([0 * sides, 0 * sides + 5, sides, sides + 5], 1)
    expected = [min(max(math.floor(math.log2((s + extent) / 56 + 1e-6)), 0), 3) for s in sides]
    np.testing.assert_array_equal(levels(jnp.asarray(boxes), rule), expected)


def test_suppression_equals_the_loop_in_every_group():
    boxes = random_boxes(60, largest=50)
    random = np.random.default_rng(3)
    scores, groups = random.permutation(60) / 60, random.integers(0, 3, 60)
    found, valid = suppress(
        jnp.asarray(boxes),
        jnp.asarray(scores),
        jnp.asarray(groups),
        threshold=0.3,
        count=60,
        rule=SEED,
    )
    expected = []
    for group in range(3):
        members = np.flatnonzero(groups == group)
        expected += list(members[kept(boxes[members], scores[members], 0.3)])
    expected.sort(key=lambda index: -scores[index])
    assert 3 < len(expected) < 50
    np.testing.assert_array_equal(np.asarray(found)[np.asarray(valid)], expected)


def test_areas_decide_a_suppression_that_pixels_without_extent_would_not_make():
    boxes = jnp.asarray([[0.0, 0, 3, 3], [1, 1, 4, 4]])
    arguments = boxes, jnp.asarray([0.9, 0.8]), jnp.zeros(2, int)
    # 9 / 23 = 0.391 with the last pixel, 4 / 14 = 0.286 without.
    for rule, count in ((SEED, 1), (NEW, 2)):
        _, valid = suppress(*arguments, threshold=0.35, count=2, rule=rule)
        assert valid.sum() == count


def test_proposals_equal_the_loop():
    random = np.random.default_rng(4)
    shapes = [(9, 11), (5, 6), (3, 3), (2, 2), (1, 1)]
    logits = [random.normal(size=(1, *shape, 3)) for shape in shapes]
    deltas = [random.normal(0, 0.5, size=(1, *shape, 12)) for shape in shapes]
    size = (35, 43)
    rpn = [tuple(map(jnp.asarray, pair)) for pair in zip(logits, deltas, strict=True)]
    found = propose(rpn, jnp.asarray([size], float), SEED)
    expected = []
    for level, (height, width) in enumerate(shapes):
        every = anchors(height, width, 4 * 2**level, SEED).astype(float)
        scores = 1 / (1 + np.exp(-logits[level].reshape(-1)))
        moves = deltas[level].reshape(-1, 4)
        boxes = [decoded(*pair, (1, 1, 1, 1), *size) for pair in zip(every, moves, strict=True)]
        expected += [(scores[i], *boxes[i]) for i in kept(boxes, scores, 0.7)]
    expected.sort(key=lambda entry: -entry[0])
    valid = np.asarray(found.valid[0])
    got = np.concatenate([found.scores[0][:, None], found.boxes[0]], 1)[valid]
    assert valid.shape == (2000,) and 100 < len(expected) < 387
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [SEED, NEW])
def test_proposals_beside_a_larger_image_are_proposals_alone(rule):
    random = np.random.default_rng(6)
    size = jnp.asarray([[35.0, 43.0]])  # Padded to 64 by 64, in a canvas of 96 by 128.
    alone, beside = [], []
    for stride in STRIDES:
        canvas, own = (-(-96 // stride), 128 // stride), -(-64 // stride)
        maps = [random.normal(size=(1, *canvas, channels)) for channels in (3, 12)]
        maps[0][:, own:] = maps[0][:, :, own:] = 9.0  # Untrained scores may be the best.
        beside.append(tuple(map(jnp.asarray, maps)))
        alone.append(tuple(jnp.asarray(array[:, :own, :own]) for array in maps))
    found, expected = propose(beside, size, rule), propose(alone, size, rule)
    assert found.valid.sum() == expected.valid.sum() > 100
    valid = np.asarray(found.valid)
    np.testing.assert_array_equal(found.boxes[valid], expected.boxes[valid])
    np.testing.assert_array_equal(found.scores[valid], expected.scores[valid])


def aligned(x, box, stride, bins) -> np.ndarray:
    """The seed's RoIAlign of a region: two samples a bin, corners without half a pixel."""

    def sample(y: float, x_: float) -> np.ndarray:
        height, width = x.shape[:2]
        if y < -1 or y > height or x_ < -1 or x_ > width:
            return np.zeros(x.shape[2])
        y, x_ = min(max(y, 0), height - 1), min(max(x_, 0), width - 1)
        top, left = int(y), int(x_)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x_ - left
        upper = (1 - u) * x[top, left] + u * x[top, right]
        lower = (1 - u) * x[bottom, left] + u * x[bottom, right]
        return (1 - v) * upper + v * lower

    x1, y1, x2, y2 = np.array([box[0], box[1], box[2] + 1, box[3] + 1]) / stride
    cell_y, cell_x = (y2 - y1) / bins, (x2 - x1) / bins
    result = np.zeros((bins, bins, x.shape[2]))
    for row, column in itertools.product(range(bins), range(bins)):
        for i, j in itertools.product((0.25, 0.75), (0.25, 0.75)):
            result[row, column] += sample(y1 + (row + i) * cell_y, x1 + (column + j) * cell_x) / 4
    return result


def test_regions_are_pooled_as_by_the_loop_from_the_level_of_their_size():
    random = np.random.default_rng(5)
    pyramid = [random.normal(size=(1, *size, 3)) for size in ((50, 70), (25, 35), (13, 18), (7, 9))]
    boxes = np.array(
        [[10, 20, 60.5, 70], [0, 3, 170, 120], [5, 6, 275, 195], [190, 100, 279, 199], [0, 0, 9, 9]]
    )
    extractor = RoIExtractor(7, 3, "align", SEED, nnx.Rngs(0))
    valid = jnp.asarray([[True, True, True, True, False]])
    pool = nnx.jit(extractor)
    found = pool(list(map(jnp.asarray, pyramid)), jnp.asarray(boxes)[None], valid)
    own_levels = np.asarray(levels(jnp.asarray(boxes), SEED))
    assert set(own_levels) == {0, 1, 2}
    for index, level in enumerate(own_levels[:4]):
        expected = aligned(pyramid[level][0], boxes[index], 4 * 2**level, 7)
        np.testing.assert_allclose(found[index], expected, rtol=1e-9, atol=1e-9)
    assert not found[4].any()


def test_masks_fill_their_boxes_at_whole_pixels():
    masks = np.zeros((3, 4, 4))
    masks[0] = 1
    masks[1, :2] = 1
    masks[2] = 0.5  # On the threshold: outside.
    boxes = np.array([[2.6, 1.2, 6.4, 4.9], [0.0, 0, 9, 7], [0.0, 0, 9, 7]])
    pasted = paste(masks, boxes, (8, 10), SEED)
    expected = np.zeros((3, 8, 10), bool)
    expected[0, 1:5, 2:7] = True
    expected[1, :4] = True
    np.testing.assert_array_equal(pasted, expected)
