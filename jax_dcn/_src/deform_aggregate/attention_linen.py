# SPDX-License-Identifier: MIT
"""Multi-scale deformable attention as a Flax Linen module."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_dcn._src.arguments import renamed, renamed_options
from jax_dcn._src.deform_aggregate import attention_layer as layers
from jax_dcn._src.deform_aggregate.layer import branch_input, branch_options, cast
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public


@public("jax_dcn.linen")
@renamed_options(layers.OPTIONS)
class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: queries that predict where to look in maps of several sizes.

    The Linen twin of `jax_dcn.nnx.MSDeformAttn`: the same options, values, and names of parameters
    (`sampling_offsets`, `attention_weights`, `value_proj`, `output_proj`).

    `"locations"` and `"weights"` are sown into the collection `intermediates`.

    Attributes:
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
        Locations and the softmax are computed in float32 at least.
      param_dtype: Dtype of the parameters.
      implementation: See `jax_dcn.ms_deform_attn`.

    Raises:
      ValueError: when the layer is made, for options that are wrong; on call, if the arguments do not
        fit. The message names the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, jax_dcn.linen
      >>> layer = jax_dcn.linen.MSDeformAttn(32, heads=4, levels=2)
      >>> shapes = ((8, 12), (4, 6))
      >>> query, value = jnp.ones((2, 100, 32)), jnp.ones((2, 8 * 12 + 4 * 6, 32))
      >>> arrays = query, jnp.full((2, 100, 2), 0.5), value
      >>> variables = layer.init(jax.random.key(0), *arrays, spatial_shapes=shapes)
      >>> layer.apply(variables, *arrays, spatial_shapes=shapes).shape
      (2, 100, 32)

      Where the queries looked, from a layer anywhere in a network:

      >>> y, sown = layer.apply(variables, *arrays, spatial_shapes=shapes, mutable="intermediates")
      >>> (locations,) = sown["intermediates"].get("locations")
      >>> locations.shape
      (2, 100, 4, 8, 2)

    References:
      Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR
      2021. Lv et al., "RT-DETRv2", 2024. Peng et al., "D-FINE", ICLR 2025.
    """

    features: int
    heads: int = 8
    levels: int = 4
    points: int | Sequence[int] = 4
    value_projection: bool = True
    output_projection: bool = True
    offset_scale: float = 0.5
    method: Literal["bilinear", "discrete"] = "bilinear"
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    implementation: Implementation = None

    def __post_init__(self) -> None:
        """Refuses options that are wrong."""
        layers.check_options(self)
        super().__post_init__()

    def setup(self) -> None:
        """Makes the dense layers."""
        ring = layers.ring(self)
        self.sampling_offsets = self._branch("sampling_offsets", nn.initializers.constant(ring))
        self.attention_weights = self._branch("attention_weights", nn.initializers.zeros_init())
        if self.value_projection:
            self.value_proj = self._projection()
        if self.output_projection:
            self.output_proj = self._projection()

    def _branch(self, name: str, bias_init: Any) -> nn.Dense:
        return nn.Dense(
            layers.branch_features(self)[name],
            **branch_options(self.param_dtype),
            kernel_init=nn.initializers.zeros_init(),
            bias_init=bias_init,
        )

    def _projection(self) -> nn.Dense:
        return nn.Dense(
            self.features,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.xavier_uniform(),
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
        self.sow("intermediates", "locations", locations)
        self.sow("intermediates", "weights", weights)
        projected = self.value_proj(value) if self.value_projection else cast(value, self.dtype)
        seen = layers.masked(projected, value_mask)
        y = layers.attend(self, seen, locations, weights, spatial_shapes)
        return self.output_proj(y) if self.output_projection else cast(y, self.dtype)

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
