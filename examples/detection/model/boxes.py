# SPDX-License-Identifier: MIT
"""Boxes `(x1, y1, x2, y2)` in pixels: the two published conventions, anchors, deltas, suppression."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image between two pixels of the pyramid levels P2 to P6."""

ANCHORS = 3
"""Anchors of one pixel of the pyramid."""

_RATIOS = np.array([0.5, 1.0, 2.0])  # Height over width.
_ANCHOR_SCALE = 8
_LARGEST_GROWTH = abs(math.log(16 / 1000))
_FINEST_SIZE = 56  # Boxes of up to twice this size are pooled from P2.
_PADDED_TO = 32  # Pixels of which the padded length of an image is a multiple.


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How a published detector measures boxes."""

    extent: float
    """The width of a box is `x2 - x1 + extent`."""
    rounded_anchors: bool
    """Whether anchors lie around the middle of a pyramid pixel, at whole pixels of the image.
    Otherwise anchors lie around the corner of the pyramid pixel, unrounded."""
    candidates: int
    """Best anchors of one level, before suppression."""
    training_candidates: int
    """The same in training."""
    proposals: int
    """Of one image, after suppression."""
    training_proposals: int
    """The same in training."""
    drops_empty: bool
    """Whether boxes without an area are no proposals."""
    sampling_ratio: int
    """Samples of a RoIAlign bin along each axis; 0: one for each pixel of the level."""
    half_pixel: float
    """Where RoIAlign expects the middle of the first pixel: at 0.5, or at 0."""
    whole_pixel_masks: bool
    """Whether a mask is pasted into the box at whole pixels."""
    one_scale: bool
    """Whether boxes of a resized image are divided by the factor of the resizing; otherwise by the
    ratios of the widths and heights, which are whole pixels."""
    anchors_inside: bool
    """Whether anchors that leave the image are not trained."""
    bend: tuple[float, float]
    """Error of a delta up to which the loss is a parabola, for anchors and for regions. 0: the loss
    is the absolute error."""
    best_region: bool
    """Whether the region nearest to an object is trained to find this object, and not another object
    that the region overlaps more."""


CONVENTIONS = {
    "mmdet3": Conventions(
        extent=0.0,
        rounded_anchors=False,
        candidates=1000,
        training_candidates=2000,
        proposals=1000,
        training_proposals=1000,
        drops_empty=True,
        sampling_ratio=0,
        half_pixel=0.5,
        whole_pixel_masks=False,
        one_scale=False,
        anchors_inside=False,
        bend=(0.0, 0.0),
        best_region=False,
    ),
    "seed": Conventions(
        extent=1.0,
        rounded_anchors=True,
        candidates=2000,
        training_candidates=2000,
        proposals=2000,
        training_proposals=2000,
        drops_empty=False,
        sampling_ratio=2,
        half_pixel=0.0,
        whole_pixel_masks=True,
        one_scale=True,
        anchors_inside=True,
        bend=(1 / 9, 1.0),
        best_region=True,
    ),
}
"""`"mmdet3"`: mmdetection 2 and 3. `"seed"`: mmdetection 0.5, with which the original deformable
detectors were trained."""


def anchors(height: int, width: int, stride: int, rule: Conventions) -> np.ndarray:
    """The anchors `[height * width * ANCHORS, 4]` of a pyramid level, by row, column and ratio."""
    heights = stride * _ANCHOR_SCALE * np.sqrt(_RATIOS)
    widths = stride * _ANCHOR_SCALE / np.sqrt(_RATIOS)
    half = (np.stack([widths, heights], axis=-1) - rule.extent) / 2
    centre = (stride - rule.extent) / 2 if rule.rounded_anchors else 0.0
    base = np.concatenate([centre - half, centre + half], axis=-1)
    if rule.rounded_anchors:
        base = np.round(base)
    y, x = stride * np.mgrid[:height, :width]
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4).astype(np.float32)


def own_anchors(height: int, width: int, stride: int, size: jax.Array) -> jax.Array:
    """The anchors of a pyramid level that belong to an image, as booleans `[A]`.

    Other anchors lie beyond the image's own padding, where only a larger image of the batch has
    pixels.

    Args:
      height, width: Pixels of the level.
      stride: Pixels of the image between two pixels of the level.
      size: `(height, width)` of the image without padding.
    """
    padded = jnp.ceil(size / _PADDED_TO) * _PADDED_TO
    rows, columns = (
        stride * jnp.arange(count, dtype=padded.dtype) < length
        for count, length in zip((height, width), padded, strict=True)
    )
    return jnp.repeat(rows[:, None] & columns[None], ANCHORS)


def sizes(boxes: jax.Array, rule: Conventions) -> jax.Array:
    """Widths and heights `[..., 2]` of boxes `[..., 4]`."""
    return boxes[..., 2:] - boxes[..., :2] + rule.extent


def decode(
    boxes: jax.Array, deltas: jax.Array, deviations: tuple[float, ...], rule: Conventions
) -> jax.Array:
    """Moves and scales boxes `[..., 4]` by predicted deltas `[..., 4]` times `deviations`."""
    deltas = deltas * _vector(deviations, deltas)
    size = sizes(boxes, rule)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + size * deltas[..., :2]
    size = size * jnp.exp(jnp.clip(deltas[..., 2:], -_LARGEST_GROWTH, _LARGEST_GROWTH))
    half = (size - rule.extent) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def encode(
    boxes: jax.Array, targets: jax.Array, deviations: tuple[float, ...], rule: Conventions
) -> jax.Array:
    """The deltas with which `decode` makes `targets` of `boxes`, both `[..., 4]`."""
    size, target_size = sizes(boxes, rule), sizes(targets, rule)
    shift = (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / (2 * size)
    deltas = jnp.concatenate([shift, jnp.log(target_size / size)], axis=-1)
    return deltas / _vector(deviations, deltas)


def clip(boxes: jax.Array, size: jax.Array, rule: Conventions) -> jax.Array:
    """Cuts boxes `[..., 4]` at the edges of an image of `size` `(height, width)`."""
    last = jnp.stack([size[1], size[0], size[1], size[0]]).astype(boxes.dtype) - rule.extent
    return jnp.clip(boxes, 0, last.reshape((1,) * (boxes.ndim - 1) + (4,)))


def levels(boxes: jax.Array, rule: Conventions) -> jax.Array:
    """The pyramid level of each box: 0 for P2 to 3 for P5."""
    side = jnp.sqrt(jnp.prod(jnp.maximum(sizes(boxes, rule), 0), axis=-1))
    return jnp.clip(jnp.floor(jnp.log2(side / _FINEST_SIZE + 1e-6)), 0, 3).astype(jnp.int32)


def overlaps(a: jax.Array, b: jax.Array, rule: Conventions) -> tuple[jax.Array, jax.Array]:
    """The areas of intersection and union of boxes `[..., 4]`, whose leading axes broadcast."""
    corner = jnp.maximum(a[..., :2], b[..., :2])
    common = jnp.concatenate([corner, jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    intersection = jnp.prod(jnp.maximum(sizes(common, rule), 0), axis=-1)
    areas = (jnp.prod(sizes(boxes, rule), axis=-1) for boxes in (a, b))
    return intersection, sum(areas) - intersection


def suppress(
    boxes: jax.Array,
    scores: jax.Array,
    groups: jax.Array,
    *,
    threshold: float,
    count: int,
    rule: Conventions,
) -> tuple[jax.Array, jax.Array]:
    """Non-maximum suppression within groups: the `count` best boxes that remain, best first.

    A box is suppressed by a better box of the same group if the intersection over union of the two
    exceeds `threshold`. Of boxes with equal scores, the first is the better one.

    Args:
      boxes: `[K, 4]`.
      scores: `[K]`; minus infinity for a box that takes no part.
      groups: `[K]`, integers: levels or classes.
      threshold: Largest intersection over union of two boxes that both remain.
      count: Number of boxes to find.
      rule: How boxes are measured.

    Returns:
      Indices of boxes `[count]`, and whether there is a box at all `[count]`.
    """

    def take_best(scores: jax.Array, _) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = jnp.argmax(scores)
        intersection, union = overlaps(boxes, boxes[best][None], rule)
        worse = (groups == groups[best]) & (intersection > threshold * union)
        left = jnp.where(worse, -jnp.inf, scores).at[best].set(-jnp.inf)
        return left, (best, scores[best] > -jnp.inf)

    return jax.lax.scan(take_best, scores, length=count)[1]


def _vector(values: tuple[float, ...], like: jax.Array) -> jax.Array:
    return jnp.asarray(values, like.dtype).reshape((1,) * (like.ndim - 1) + (4,))
