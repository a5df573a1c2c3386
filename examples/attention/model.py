# SPDX-License-Identifier: MIT
"""Queries that find a digit: a pyramid of three maps, and a decoder of deformable attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_dcn.nnx import MSDeformAttn

FEATURES = 32
STRIDES = (2, 4, 8)  # Pixels of the image between neighbours in each map of the pyramid.
LAYERS = 3
# Boxes (x, y, width, height) that the queries look at first, in parts of the image.
START = np.array([[x, y, 0.5, 0.5] for y in (0.25, 0.75) for x in (0.25, 0.75)], np.float32)


class Look(NamedTuple):
    """What a layer of the decoder does, for every query."""

    locations: jax.Array  # [N, Q, heads, levels * points, 2], (x, y) in parts of the image
    weights: jax.Array  # [N, Q, heads, levels * points]
    box: jax.Array  # [N, Q, 4]: the box afterwards


class Pyramid(nnx.Module):
    """Three maps of an image, each half as large as the one before."""

    def __init__(self, rngs: nnx.Rngs):
        widths = (3, FEATURES // 2, FEATURES, FEATURES, FEATURES)
        strides = (2, 1, 2, 2)
        self.convolutions = nnx.List(
            nnx.Conv(before, after, (3, 3), stride, use_bias=False, rngs=rngs)
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nnx.List(nnx.GroupNorm(width, num_groups=4, rngs=rngs) for width in widths[1:])

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        maps = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.relu(norm(convolution(x)))
            maps.append(x)
        return maps[1:]


class Decoder(nnx.Module):
    """A layer: every query looks around its box, and corrects the box."""

    def __init__(self, rngs: nnx.Rngs):
        levels = len(STRIDES)
        self.attention = MSDeformAttn(FEATURES, heads=8, levels=levels, points=4, rngs=rngs)
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.hidden = nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs)
        self.added = nnx.Linear(2 * FEATURES, FEATURES, rngs=rngs)
        self.last_norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.correction = nnx.Linear(
            FEATURES, 4, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(
        self, query: jax.Array, box: jax.Array, value: jax.Array, shapes: Any
    ) -> tuple[jax.Array, Look]:
        looked = self.attention.locations_and_weights(query, box, spatial_shapes=shapes)
        query = self.norm(query + self.attention(query, box, value, spatial_shapes=shapes))
        query = self.last_norm(query + self.added(jax.nn.relu(self.hidden(query))))
        box = jax.nn.sigmoid(_logit(box) + self.correction(query))
        return query, Look(*looked, box)


class Finder(nnx.Module):
    """Images `[N, H, W, 3]` to what the queries look at, layer by layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.pyramid = Pyramid(rngs)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (len(START), FEATURES)))
        self.layers = nnx.List(Decoder(rngs) for _ in range(LAYERS))

    def __call__(self, images: jax.Array) -> list[Look]:
        maps = self.pyramid(images)
        shapes = tuple(m.shape[1:3] for m in maps)
        value = jnp.concatenate([m.reshape(len(m), -1, FEATURES) for m in maps], axis=1)
        query = jnp.broadcast_to(self.queries[...], (len(images), *self.queries.shape))
        box = jnp.broadcast_to(jnp.asarray(START), (len(images), *START.shape))
        looks = []
        for layer in self.layers:
            query, look = layer(query, box, value, shapes)
            looks.append(look)
            # A layer learns from its own box, as in Deformable DETR.
            box = jax.lax.stop_gradient(look.box)
        return looks


def _logit(share: jax.Array) -> jax.Array:
    share = jnp.clip(share, 1e-4, 1 - 1e-4)
    return jnp.log(share) - jnp.log1p(-share)
