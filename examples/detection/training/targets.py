# SPDX-License-Identifier: MIT
"""What anchors and regions are trained to find: matching with objects, and a random choice."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from examples.detection.model.boxes import Conventions, overlaps


class Matches(NamedTuple):
    """The object of every box, `[R]`."""

    target: jax.Array
    """Index of the object."""
    positive: jax.Array
    """Whether the box is trained to find the object."""
    negative: jax.Array
    """Whether the box is trained to find nothing. A box may be neither."""


class Choice(NamedTuple):
    """Boxes to train in a step, positive ones first, `[count]`."""

    index: jax.Array
    positive: jax.Array
    valid: jax.Array
    """False where there are fewer boxes than places."""


def match(
    boxes: jax.Array,
    objects: jax.Array,
    real: jax.Array,
    rule: Conventions,
    *,
    positive: float,
    negative: float,
    best: float | None = None,
    usable: jax.Array | None = None,
) -> Matches:
    """Matches boxes with the objects that they overlap most.

    Args:
      boxes: `[R, 4]`.
      objects: `[G, 4]`.
      real: `[G]`: False for rows without an object.
      rule: How boxes are measured.
      positive: A box whose intersection over union with an object reaches this is positive.
      negative: A box that stays below this with all objects is negative.
      best: The boxes nearest to an object are positive as well, and are trained to find this object,
        if their overlap reaches this.
      usable: `[R]`: False for boxes that are neither positive nor negative.
    """
    intersection, union = overlaps(objects[:, None], boxes[None], rule)
    overlap = jnp.where(real[:, None], intersection / jnp.maximum(union, 1e-6), 0)
    if usable is not None:
        overlap = jnp.where(usable[None], overlap, -1)
    most, target = jnp.max(overlap, axis=0), jnp.argmax(overlap, axis=0)
    is_positive = most >= positive
    if best is not None:
        nearest = jnp.max(overlap, axis=1, keepdims=True)
        chosen = (overlap == nearest) & (nearest >= best) & real[:, None]
        # Of several objects with the same nearest box, the last one gets the box.
        last = len(objects) - 1 - jnp.argmax(chosen[::-1], axis=0)
        is_nearest = jnp.any(chosen, axis=0)
        target, is_positive = jnp.where(is_nearest, last, target), is_positive | is_nearest
    return Matches(target, is_positive, (most >= 0) & (most < negative) & ~is_positive)


def with_objects(matches: Matches, real: jax.Array) -> Matches:
    """The matches of the objects with themselves, and after them `matches`.

    Objects are boxes to train as well: at the start no proposal is near an object.

    Args:
      matches: Of `R` boxes.
      real: `[G]`: False for rows without an object.
    """
    own = Matches(jnp.arange(len(real)), real, jnp.zeros_like(real))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), own, matches)


def choose(key: jax.Array, matches: Matches, count: int, most_positive: int) -> Choice:
    """Chooses `count` boxes at random, at most `most_positive` of them positive."""
    luck = jax.random.uniform(key, matches.positive.shape, jnp.float32)
    most_positive = min(most_positive, len(luck))
    lucky, index = jax.lax.top_k(jnp.where(matches.positive, luck, -1), most_positive)
    # Chosen positive boxes from 1 to 2, negative ones from 0 to 1, others below.
    rank = jnp.where(matches.negative, luck, -1)
    rank = rank.at[index].max(jnp.where(lucky >= 0, lucky + 1, -1))
    rank, index = jax.lax.top_k(rank, min(count, len(luck)))
    return Choice(index, rank >= 1, rank >= 0)
