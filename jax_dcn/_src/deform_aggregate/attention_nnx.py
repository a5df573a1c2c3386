# SPDX-License-Identifier: MIT
"""Multi-scale deformable attention as a Flax NNX module."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jax_dcn._src.arguments import renamed, static
from jax_dcn._src.deform_aggregate import attention_layer as layers
from jax_dcn._src.deform_aggregate.layer import branch_input, branch_options, cast
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.nnx import check_rngs, is_captured
from jax_dcn._src.public import public


@public("jax_dcn.nnx")
class MSDeformAttn(nnx.Module):
    """Multi-scale deformable attention: queries that predict where to look in maps of several sizes.

    From a query, the dense layer `sampling_offsets` predicts offsets from the query's reference, and
    `attention_weights` the logits of the weights, of which the softmax is taken over all levels and
    points of a head. `jax_dcn.ms_deform_attn` does the rest, between the dense layers `value_proj`
    and `output_proj`. Names, axes and initial values are Deformable DETR's, whose checkpoints
    `jax_dcn.interop.torch_weights` reads: a fresh layer looks in another direction with every head,
    further away with every point, and weights all points equally.

    `"locations"` and `"weights"` are sown as `nnx.Intermediate` while `nnx.capture` listens.

    Args:
      features: Number of channels of queries, values and results.
      heads: Number of heads, which divides `features`.
      levels: Number of maps.
      points: Points of each head in each map: one number, or one for each map, as (3, 6, 3) in D-FINE.
      value_projection, output_projection: Whether there are the dense layers `value_proj` and
        `output_proj`. D-FINE has neither.
      offset_scale: Length of an offset of one in a reference box, where references have four
        coordinates: in widths and heights of the box, shared by the points of a map.
      method: `"bilinear"`, or `"discrete"` (RT-DETRv2), see `jax_dcn.ms_deform_attn`.
      dtype: Dtype of the projections and the result; by default, inputs and parameters are promoted.
        Locations and the softmax are computed in float32 at least: in bfloat16 a location would miss
        by half a pixel of a map that is 167 pixels wide.
      param_dtype: Dtype of the parameters.
      implementation: See `jax_dcn.ms_deform_attn`.
      rngs: Random streams; `params` initialises the projections.

    Raises:
      ValueError: when the layer is made, for options that are wrong; on call, if the arguments do not
        fit. The message names the argument.

    Examples:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> layer = jax_dcn.nnx.MSDeformAttn(32, heads=4, levels=2, rngs=nnx.Rngs(0))
      >>> shapes = ((8, 12), (4, 6))
      >>> query, value = jnp.ones((2, 100, 32)), jnp.ones((2, 8 * 12 + 4 * 6, 32))
      >>> centre = jnp.full((2, 100, 2), 0.5)
      >>> layer(query, centre, value, spatial_shapes=shapes).shape
      (2, 100, 32)

      Where the queries looked, from a layer anywhere in a network (flax 0.12.6 or newer):

      >>> attend = lambda layer: layer(query, centre, value, spatial_shapes=shapes)
      >>> _, sown = nnx.capture(attend, nnx.Intermediate)(layer)
      >>> (locations,) = sown["locations"]
      >>> locations.shape
      (2, 100, 4, 8, 2)

      A tenth of the learning rate for the offsets, as in the paper:

      >>> import functools, optax
      >>> offsets = functools.partial(jax_dcn.nnx.is_offset_branch, names=["sampling_offsets"])
      >>> optimizer = optax.chain(
      ...     optax.adamw(2e-4), optax.masked(optax.scale(0.1), offsets)
      ... )
      >>> optimizer = nnx.Optimizer(layer, optimizer, wrt=nnx.Param)

    References:
      Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR
      2021. Lv et al., "RT-DETRv2", 2024. Peng et al., "D-FINE", ICLR 2025.
    """

    @renamed(layers.OPTIONS)
    def __init__(
        self,
        features: int,
        *,
        heads: int = 8,
        levels: int = 4,
        points: int | Sequence[int] = 4,
        value_projection: bool = True,
        output_projection: bool = True,
        offset_scale: float = 0.5,
        method: Literal["bilinear", "discrete"] = "bilinear",
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.heads = heads
        self.levels = levels
        self.points = static(points)
        self.value_projection = value_projection
        self.output_projection = output_projection
        self.offset_scale = offset_scale
        self.method: Literal["bilinear", "discrete"] = method
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.implementation = static(implementation)
        layers.check_options(self)
        check_rngs(rngs)
        ring = layers.ring(self)
        self.sampling_offsets = self._branch("sampling_offsets", nnx.initializers.constant(ring))
        self.attention_weights = self._branch("attention_weights", nnx.initializers.zeros_init())
        self.value_proj = self._projection(rngs) if value_projection else None
        self.output_proj = self._projection(rngs) if output_projection else None

    def _branch(self, name: str, bias_init: Any) -> nnx.Linear:
        return nnx.Linear(
            self.features,
            layers.branch_features(self)[name],
            **branch_options(self.param_dtype),
            kernel_init=nnx.initializers.zeros_init(),
            bias_init=bias_init,
            rngs=nnx.Rngs(0),  # zeros need no randomness
        )

    def _projection(self, rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(
            self.features,
            self.features,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nnx.initializers.xavier_uniform(),
            rngs=rngs,
        )

    @renamed(layers.CALL_ARGUMENTS, layers.CALL_ABSENT)
    def __call__(
        self,
        query: jax.Array,
        reference: jax.Array,
        value: jax.Array,
        *,
        spatial_shapes: Sequence[tuple[int, int]],
        value_mask: jax.Array | None = None,
    ) -> jax.Array:
        """For every query, the weighted sum of its samples: `[..., Q, features]`.

        Args:
          query: The queries, with their positional embeddings added.
          reference: Where the queries look from, `[..., Q, levels, 2]`: `(x, y)`, where 0 and 1 are
            the outer edges of a map; or boxes `[..., Q, levels, 4]`: `(x, y)` of the centre, width,
            height. References that are the same in all maps are `[..., Q, 2]` or `[..., Q, 4]`.
          value: The maps, `[..., S, features]`: one after the other, each row by row.
          spatial_shapes: `(height, width)` of each map, static; `S` is the sum of their products.
          value_mask: `[..., S]`, `True` for a pixel that counts, as in Hugging Face. The masks of the
            original and of Mask2Former are `True` for padding: give `~mask`. A pixel that does not
            count is zero after `value_proj`.
        """
        query, reference, value = layers.check_call(
            self, query, reference, value, spatial_shapes, value_mask
        )
        locations, weights = self._predicted(query, reference, spatial_shapes)
        if is_captured(self):
            self.sow(nnx.Intermediate, "locations", locations)
            self.sow(nnx.Intermediate, "weights", weights)
        projected = self._projected(self.value_proj, value)
        seen = layers.masked(projected, value_mask)
        y = layers.attend(self, seen, locations, weights, spatial_shapes)
        return self._projected(self.output_proj, y)

    def _projected(self, projection: nnx.Linear | None, x: jax.Array) -> jax.Array:
        return cast(x, self.dtype) if projection is None else projection(x)

    def _predicted(
        self, query: jax.Array, reference: jax.Array, spatial_shapes: layers.Shapes
    ) -> tuple[jax.Array, jax.Array]:
        query = branch_input(query)
        offsets, logits = self.sampling_offsets(query), self.attention_weights(query)
        return layers.locations_and_weights(self, offsets, logits, reference, spatial_shapes)

    def locations_and_weights(
        self,
        query: jax.Array,
        reference: jax.Array,
        *,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> tuple[jax.Array, jax.Array]:
        """Where every query looks, to draw it.

        Returns:
          Locations `[..., Q, heads, sum(points), 2]`, last axis `(x, y)`, where 0 and 1 are the outer
          edges of the map, and weights `[..., Q, heads, sum(points)]`. The points of the first map
          come first.
        """
        query, reference = layers.check_query(self, query, reference, spatial_shapes)
        return self._predicted(query, reference, spatial_shapes)
