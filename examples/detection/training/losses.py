# SPDX-License-Identifier: MIT
"""The losses of a detector, as in mmdetection."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.detection.model.boxes import (
    STRIDES,
    Conventions,
    anchors,
    clip,
    decode,
    encode,
    own_anchors,
    sizes,
)
from examples.detection.model.detect import (
    BOX_DEVIATIONS,
    PROPOSAL_DEVIATIONS,
    Images,
    by_image,
    propose,
)
from examples.detection.model.networks import Detector, RoIHead
from examples.detection.training.targets import Choice, choose, match, with_objects

Losses = dict[str, jax.Array]

_ANCHOR_OVERLAPS = dict(positive=0.7, negative=0.3, best=0.3)
_REGION_OVERLAPS = (0.5, 0.6, 0.7)
"""The overlap from which a region is positive, for each head of a cascade."""
_HEAD_WEIGHTS = (1.0, 0.5, 0.25)
_POSITIVE_ANCHORS = 0.5
_POSITIVE_REGIONS = 0.25


class Truth(NamedTuple):
    """The objects of a batch."""

    boxes: jax.Array
    """`[N, G, 4]`, in pixels of the batch."""
    labels: jax.Array
    """`[N, G]`; negative for rows without an object."""
    masks: jax.Array | None
    """`[N, G, M, M]`, booleans, each stretched over its box."""


class Sampling(NamedTuple):
    """How many boxes of an image a step trains."""

    anchors: int = 256
    """At most half of them positive."""
    regions: int = 512
    """At most a quarter of them positive."""


def losses(
    detector: Detector, images: Images, truth: Truth, sampling: Sampling, key: jax.Array
) -> Losses:
    """The losses of all parts by name, and "loss", their sum."""
    keys = jax.random.split(key, (2, len(truth.labels)))
    pyramid = detector.neck(detector.backbone.features(images.pixels))
    rpn = [detector.rpn_head(level) for level in pyramid]
    found = rpn_losses(rpn, images.sizes, truth, detector.rule, sampling.anchors, keys[0])
    # Boxes are given: no gradient flows through where a region lies.
    proposals = propose(jax.lax.stop_gradient(rpn), images.sizes, detector.training_rule)
    regions = proposals.boxes, proposals.valid
    found |= region_losses(
        detector, pyramid, regions, images.sizes, truth, sampling.regions, keys[1]
    )
    return found | {"loss": sum(found.values())}


def rpn_losses(
    rpn: list[tuple[jax.Array, jax.Array]],
    image_sizes: jax.Array,
    truth: Truth,
    rule: Conventions,
    count: int,
    keys: jax.Array,
) -> Losses:
    """The losses of score and box of anchors."""
    every = _anchors(rpn, rule)

    def of_image(logits, deltas, size, boxes, labels, key):
        usable = _usable(rpn, size, rule)
        matches = match(every, boxes, labels >= 0, rule, usable=usable, **_ANCHOR_OVERLAPS)
        chosen = choose(key, matches, count, int(count * _POSITIVE_ANCHORS))
        targets = boxes[matches.target[chosen.index]]
        goal = _goal(every[chosen.index], targets, PROPOSAL_DEVIATIONS, chosen.positive, rule)
        classes = optax.sigmoid_binary_cross_entropy(
            logits[chosen.index], chosen.positive.astype(logits.dtype)
        )
        moves = jnp.sum(_bent(deltas[chosen.index] - goal, rule.bend[0]), axis=-1)
        return _total(classes, chosen.valid), _total(moves, chosen.positive), _count(chosen)

    logits, deltas = zip(*rpn, strict=True)
    logits, deltas = _of_all_levels(logits, ()), _of_all_levels(deltas, (4,))
    totals = jax.vmap(of_image)(logits, deltas, image_sizes, truth.boxes, truth.labels, keys)
    classes, moves, counts = map(jnp.sum, totals)
    return {"rpn_class": classes / counts, "rpn_box": moves / counts}


def _anchors(rpn: list[tuple[jax.Array, jax.Array]], rule: Conventions) -> jax.Array:
    """The anchors of all levels, `[A, 4]`."""
    levels = [anchors(*shape, stride, rule) for shape, stride in _levels(rpn)]
    return jnp.asarray(np.concatenate(levels))


def _usable(
    rpn: list[tuple[jax.Array, jax.Array]], size: jax.Array, rule: Conventions
) -> jax.Array:
    """The anchors of all levels that are trained in an image of `size`, as booleans `[A]`."""
    if rule.anchors_inside:
        every = _anchors(rpn, rule)
        inside = (every[:, :2] >= 0) & (every[:, 2:] < size[None, ::-1])
        return jnp.all(inside, axis=-1)
    return jnp.concatenate([own_anchors(*shape, stride, size) for shape, stride in _levels(rpn)])


def _levels(rpn: list[tuple[jax.Array, jax.Array]]) -> list[tuple[tuple[int, int], int]]:
    """Height and width, and the stride, of every level."""
    shapes = [logits.shape[1:3] for logits, _ in rpn]
    return list(zip(shapes, STRIDES, strict=True))


def _of_all_levels(maps: Sequence[jax.Array], width: tuple[int, ...]) -> jax.Array:
    """Maps `[N, H, W, ...]` of all levels as `[N, A, *width]`, in the order of the anchors."""
    return jnp.concatenate([x.reshape(len(x), -1, *width) for x in maps], axis=1)


def region_losses(
    detector: Detector,
    pyramid: list[jax.Array],
    regions: tuple[jax.Array, jax.Array],
    image_sizes: jax.Array,
    truth: Truth,
    count: int,
    keys: jax.Array,
) -> Losses:
    """The losses of class, box and mask of regions, for every head of a cascade.

    `regions` are boxes `[N, R, 4]`, and whether each is a region, `[N, R]`. The objects are regions
    of every head as well.
    """
    head, rule = detector.roi_head, detector.rule
    found: Losses = {}
    last = len(head.box_heads) - 1
    for stage, box_head in enumerate(head.box_heads):
        sampled = _sample(regions, truth, rule, stage, count, _folded(keys, stage))
        pooled = head.bbox_roi_extractor(pyramid, sampled.boxes, sampled.choice.valid)
        logits, deltas = (by_image(array, sampled.boxes) for array in box_head(pooled))
        of_stage = _box_losses(logits, deltas, sampled, rule, BOX_DEVIATIONS[stage])
        suffix = f"_{stage}" if last else ""
        found |= {name + suffix: _HEAD_WEIGHTS[stage] * loss for name, loss in of_stage.items()}
        if stage == 0 and head.mask_head is not None:
            found |= {"mask": _mask_loss(head, pyramid, sampled, truth, rule)}
        if stage < last:
            regions = _refined(sampled, deltas, image_sizes, rule, stage)
    return found


class _Sampled(NamedTuple):
    """Regions of a step, `[N, count]`, and what they are trained to find."""

    boxes: jax.Array
    choice: Choice
    labels: jax.Array
    """The class of a positive region."""
    targets: jax.Array
    """The box of the object, `[N, count, 4]`."""
    objects: jax.Array
    """The row of the object."""
    is_object: jax.Array
    """Whether the region is the object itself."""


def _sample(
    regions: tuple[jax.Array, jax.Array],
    truth: Truth,
    rule: Conventions,
    stage: int,
    count: int,
    keys: jax.Array,
) -> _Sampled:
    threshold = _REGION_OVERLAPS[stage]

    def of_image(boxes, valid, objects, labels, key) -> _Sampled:
        matches = match(
            boxes,
            objects,
            labels >= 0,
            rule,
            positive=threshold,
            negative=threshold,
            best=threshold if rule.best_region else None,
            usable=valid,
        )
        matches = with_objects(matches, labels >= 0)
        chosen = choose(key, matches, count, int(count * _POSITIVE_REGIONS))
        row = matches.target[chosen.index]
        every = jnp.concatenate([objects, boxes])
        is_object = chosen.index < len(objects)
        return _Sampled(every[chosen.index], chosen, labels[row], objects[row], row, is_object)

    sampled = jax.vmap(of_image)(*regions, truth.boxes, truth.labels, keys)
    return jax.lax.stop_gradient(sampled)


def _box_losses(
    logits: jax.Array,
    deltas: jax.Array,
    sampled: _Sampled,
    rule: Conventions,
    deviations: tuple[float, ...],
) -> Losses:
    positive, valid = sampled.choice.positive, sampled.choice.valid
    labels = jnp.where(positive, sampled.labels, logits.shape[-1] - 1)
    classes = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    goal = _goal(sampled.boxes, sampled.targets, deviations, positive, rule)
    own = jnp.minimum(jnp.maximum(sampled.labels, 0), deltas.shape[2] - 1)
    moves = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0] - goal
    moves = jnp.sum(_bent(moves, rule.bend[1]), axis=-1)
    total = jnp.maximum(jnp.sum(valid), 1)
    return {"class": _total(classes, valid) / total, "box": _total(moves, positive) / total}


def _mask_loss(
    head: RoIHead, pyramid: list[jax.Array], sampled: _Sampled, truth: Truth, rule: Conventions
) -> jax.Array:
    """The mean over all pixels of the masks of positive regions, which come first."""
    count = max(1, int(sampled.boxes.shape[1] * _POSITIVE_REGIONS))
    boxes, positive = sampled.boxes[:, :count], sampled.choice.positive[:, :count]
    logits = by_image(head.mask_head(head.mask_roi_extractor(pyramid, boxes, positive)), boxes)
    own = jnp.maximum(sampled.labels[:, :count], 0)[..., None, None, None]
    logits = jnp.take_along_axis(logits, own, axis=-1)[..., 0]
    cut = functools.partial(mask_of_region, cells=logits.shape[-1], rule=rule)
    rows, targets = sampled.objects[:, :count], sampled.targets[:, :count]
    goal = jax.vmap(jax.vmap(cut, (None, 0, 0, 0)))(truth.masks, rows, targets, boxes)
    pixels = optax.sigmoid_binary_cross_entropy(logits, goal.astype(logits.dtype))
    total = jnp.maximum(jnp.sum(positive), 1)
    return _total(jnp.mean(pixels, axis=(2, 3)), positive) / total


def mask_of_region(
    masks: jax.Array,
    row: jax.Array,
    target: jax.Array,
    box: jax.Array,
    cells: int,
    rule: Conventions,
) -> jax.Array:
    """The part of an object's mask that is in a region, `[cells, cells]`, booleans.

    Args:
      masks: `[G, M, M]`, each stretched over the box of its object.
      row: Which object.
      target: Its box.
      box: The region.
      cells: Height and width of the result.
      rule: How boxes are measured.
    """
    size = jnp.maximum(sizes(target, rule), 1e-6)
    middle = (jnp.arange(cells, dtype=box.dtype) + 0.5) / cells
    # Positions of the middles `(x, y)` in cells of the object's mask.
    place = box[:2, None] + middle[None] * sizes(box, rule)[:, None]
    place = (place - target[:2, None]) / size[:, None] * masks.shape[-1] - 0.5
    every = jnp.arange(masks.shape[-1], dtype=box.dtype)
    columns, rows = jnp.maximum(1 - jnp.abs(place[..., None] - every[None, None]), 0)
    return rows @ masks[row].astype(box.dtype) @ columns.T >= 0.5


def _refined(
    sampled: _Sampled, deltas: jax.Array, image_sizes: jax.Array, rule: Conventions, stage: int
) -> tuple[jax.Array, jax.Array]:
    """The regions of the next head of a cascade. Moved objects are none: each head gets the objects."""
    moved = decode(sampled.boxes, deltas[:, :, 0], BOX_DEVIATIONS[stage], rule)
    moved = jax.vmap(lambda boxes, size: clip(boxes, size, rule))(moved, image_sizes)
    moved = jax.lax.stop_gradient(moved)
    valid = sampled.choice.valid & ~sampled.is_object
    return moved, valid & jnp.all(sizes(moved, rule) > 0, axis=-1)


def _folded(keys: jax.Array, stage: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys)


def _goal(
    boxes: jax.Array,
    targets: jax.Array,
    deviations: tuple[float, ...],
    positive: jax.Array,
    rule: Conventions,
) -> jax.Array:
    """The deltas to predict; zero for boxes without an object, whose deltas may not be finite."""
    return jnp.where(positive[..., None], encode(boxes, targets, deviations, rule), 0)


def _bent(error: jax.Array, bend: float) -> jax.Array:
    """The absolute error; below `bend`, if positive, a parabola with the same slope there."""
    return optax.huber_loss(error, delta=bend) / bend if bend else jnp.abs(error)


def _total(values: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(chosen, values, 0))


def _count(chosen: Choice) -> jax.Array:
    """The number of positive and of negative boxes, each at least one, as mmdetection counts them."""
    positive = jnp.sum(chosen.positive)
    return jnp.maximum(positive, 1) + jnp.maximum(jnp.sum(chosen.valid) - positive, 1)
