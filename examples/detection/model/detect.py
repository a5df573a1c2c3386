# SPDX-License-Identifier: MIT
"""From images to detections: the steps of a two-stage detector, with shapes that never change."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from examples.detection.model.boxes import (
    STRIDES,
    Conventions,
    anchors,
    clip,
    decode,
    own_anchors,
    sizes,
    suppress,
)
from examples.detection.model.networks import BoxHead, Detector

DETECTIONS = 100
"""Most detections of one image."""

PROPOSAL_DEVIATIONS = (1.0, 1.0, 1.0, 1.0)
BOX_DEVIATIONS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)
"""Standard deviations of the deltas of each box head of a cascade."""

_PROPOSAL_OVERLAP = 0.7
_DETECTION_OVERLAP = 0.5


class Images(NamedTuple):
    """A batch of images, padded at the right and at the bottom to one size."""

    pixels: jax.Array
    """Normalised, `[N, H, W, 3]`, red first."""
    sizes: jax.Array
    """Heights and widths `[N, 2]` without the padding."""
    scales: jax.Array
    """How much wider and higher, `[N, 2]`, the images are than the files."""


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first."""

    boxes: jax.Array
    """`[N, R, 4]`, in pixels of the batch."""
    scores: jax.Array
    """`[N, R]`, from 0 to 1."""
    valid: jax.Array
    """`[N, R]`: False for entries that only fill the array."""


class Detections(NamedTuple):
    """Objects found, best first."""

    boxes: jax.Array
    """`[N, D, 4]`, in pixels of the files."""
    scores: jax.Array
    """`[N, D]`, from 0 to 1."""
    labels: jax.Array
    """`[N, D]`: classes, from 0."""
    valid: jax.Array
    """`[N, D]`: False for entries that only fill the array."""
    masks: jax.Array | None
    """`[N, D, 28, 28]`: probability that a part of the box is the object; `None` without a head."""


class Stages(NamedTuple):
    """Every intermediate result of a detector."""

    backbone: list[jax.Array]
    """C2 to C5, `[N, H, W, C]`."""
    pyramid: list[jax.Array]
    """P2 to P6, `[N, H, W, C]`."""
    rpn: list[tuple[jax.Array, jax.Array]]
    """Logits `[N, H, W, 3]` and deltas `[N, H, W, 12]` of the anchors of P2 to P6."""
    proposals: Proposals
    detections: Detections


@nnx.jit
def detect(detector: Detector, images: Images, score_threshold: float) -> Detections:
    """The objects in `images` whose score exceeds `score_threshold`."""
    return run(detector, images, score_threshold).detections


def run(detector: Detector, images: Images, score_threshold: float | jax.Array) -> Stages:
    """All stages of a detector, from images to detections."""
    backbone = detector.backbone.features(images.pixels)
    pyramid = detector.neck(backbone)
    rpn = [detector.rpn_head(level) for level in pyramid]
    proposals = propose(rpn, images.sizes, detector.rule)
    detections = classify(detector, pyramid, proposals, images, score_threshold)
    return Stages(backbone, pyramid, rpn, proposals, detections)


def propose(
    rpn: list[tuple[jax.Array, jax.Array]], image_sizes: jax.Array, rule: Conventions
) -> Proposals:
    """The best anchors of every image, moved by their deltas, without near duplicates."""
    return jax.vmap(lambda maps, size: _propose(maps, size, rule))(rpn, image_sizes)


def _propose(
    rpn: list[tuple[jax.Array, jax.Array]], size: jax.Array, rule: Conventions
) -> Proposals:
    boxes, scores, level_of = candidates(rpn, size, rule)
    chosen, valid = suppress(
        boxes,
        scores,
        level_of,
        threshold=_PROPOSAL_OVERLAP,
        count=rule.proposals,
        rule=rule,
    )
    return Proposals(boxes[chosen], jnp.where(valid, scores[chosen], 0), valid)


def candidates(
    rpn: list[tuple[jax.Array, jax.Array]], size: jax.Array, rule: Conventions
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes, scores and levels of the best anchors of every level of one image."""
    found = [_candidates(*maps, level, size, rule) for level, maps in enumerate(rpn)]
    boxes, scores, level_of = map(jnp.concatenate, zip(*found, strict=True))
    return boxes, scores, level_of


def _candidates(
    logits: jax.Array, deltas: jax.Array, level: int, size: jax.Array, rule: Conventions
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes, scores and the level of the best anchors of one level of one image."""
    every = jnp.asarray(anchors(*logits.shape[:2], STRIDES[level], rule), deltas.dtype)
    count = min(rule.candidates, len(every))
    # `jax.nn.sigmoid` may round differently. Scores near one are multiples of 2**-24, and the order
    # of anchors with equal scores decides which of them suppresses the other.
    scores = 1 / (1 + jnp.exp(-logits.reshape(-1)))
    # Anchors beyond the image's own padding were not trained.
    scores = jnp.where(own_anchors(*logits.shape[:2], STRIDES[level], size), scores, -jnp.inf)
    scores, best = jax.lax.top_k(scores, count)
    boxes = decode(every[best], deltas.reshape(-1, 4)[best], PROPOSAL_DEVIATIONS, rule)
    boxes = clip(boxes, size, rule)
    if rule.drops_empty:
        scores = jnp.where(jnp.all(sizes(boxes, rule) > 0, axis=-1), scores, -jnp.inf)
    return boxes, scores, jnp.full(count, level)


def classify(
    detector: Detector,
    pyramid: list[jax.Array],
    proposals: Proposals,
    images: Images,
    score_threshold: float | jax.Array,
) -> Detections:
    """The class, the box and the mask of every object among the proposals."""
    boxes, logits, deltas = refine(detector, pyramid, proposals, images)
    deviations = BOX_DEVIATIONS[len(detector.roi_head.box_heads) - 1]

    def choose(boxes, valid, logits, deltas, size, scale) -> Detections:
        moved = clip(decode(boxes[:, None], deltas, deviations, detector.rule), size, detector.rule)
        moved = moved / jnp.tile(scale, 2)[None, None].astype(moved.dtype)
        scores = jnp.where(valid[:, None], jax.nn.softmax(logits)[:, :-1], -jnp.inf)
        scores = jnp.where(scores > score_threshold, scores, -jnp.inf)
        return _choose(moved, scores, detector.rule)

    detections = jax.vmap(choose)(
        boxes, proposals.valid, logits, deltas, images.sizes, images.scales
    )
    return detections._replace(masks=_masks(detector, pyramid, detections, images))


def refine(
    detector: Detector, pyramid: list[jax.Array], proposals: Proposals, images: Images
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The boxes before the last head, the mean logits of all heads, and the deltas of the last."""
    head, rule = detector.roi_head, detector.rule

    def look(box_head: BoxHead, boxes: jax.Array) -> list[jax.Array]:
        pooled = head.bbox_roi_extractor(pyramid, boxes, proposals.valid)
        return [by_image(array, boxes) for array in box_head(pooled)]

    boxes, (first, *others) = proposals.boxes, head.box_heads
    logits, deltas = look(first, boxes)
    for box_head, deviations in zip(others, BOX_DEVIATIONS, strict=False):
        # A head of a cascade has one regression for all classes.
        boxes = decode(boxes, deltas[:, :, 0], deviations, rule)
        boxes = jax.vmap(lambda boxes, size: clip(boxes, size, rule))(boxes, images.sizes)
        more_logits, deltas = look(box_head, boxes)
        logits += more_logits
    return boxes, logits / len(head.box_heads), deltas


def _choose(boxes: jax.Array, scores: jax.Array, rule: Conventions) -> Detections:
    """The best of boxes `[R, classes or 1, 4]` with scores `[R, classes]`, without duplicates."""
    count, classes = scores.shape
    boxes = jnp.broadcast_to(boxes, (count, classes, 4)).reshape(-1, 4)
    labels = jnp.tile(jnp.arange(classes), count)
    scores = scores.reshape(-1)
    chosen, valid = suppress(
        boxes, scores, labels, threshold=_DETECTION_OVERLAP, count=DETECTIONS, rule=rule
    )
    return Detections(
        boxes[chosen], jnp.where(valid, scores[chosen], 0), labels[chosen], valid, None
    )


def _masks(
    detector: Detector, pyramid: list[jax.Array], detections: Detections, images: Images
) -> jax.Array | None:
    head = detector.roi_head
    if head.mask_head is None:
        return None
    scale = jnp.tile(images.scales, (1, 2))[:, None].astype(detections.boxes.dtype)
    boxes = detections.boxes * scale
    logits = head.mask_head(head.mask_roi_extractor(pyramid, boxes, detections.valid))
    logits = by_image(logits, boxes)
    own = jnp.take_along_axis(logits, detections.labels[:, :, None, None, None], axis=-1)
    return jax.nn.sigmoid(own[..., 0])


def by_image(array: jax.Array, boxes: jax.Array) -> jax.Array:
    """`[N * R, ...]` as `[N, R, ...]`."""
    return array.reshape(*boxes.shape[:2], *array.shape[1:])
