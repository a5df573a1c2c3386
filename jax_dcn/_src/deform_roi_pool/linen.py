# SPDX-License-Identifier: MIT
"""Deformable RoI pooling as a Flax Linen module."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jax_dcn._src.arguments import function, renamed_options
from jax_dcn._src.deform_roi_pool import layer as roi_layers
from jax_dcn._src.deform_roi_pool.hints import ABSENT_OPTIONS, OPTIONS
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public


@public("jax_dcn.linen")
@renamed_options(OPTIONS, ABSENT_OPTIONS)
class DeformRoIPool(nn.Module):
    r"""Pools regions at bins that it displaces and modulates after a first look at the region.

    The Linen twin of `jax_dcn.nnx.DeformRoIPool`: the same options and values, and the same table of
    checkpoints.

    Attributes:
      output_dim: Number of features `D` of the result.
      pooled_size: Number of bins `P` along each axis.
      spatial_scale: Pixels of `x` in a pixel of the image of the regions, e.g. 1/16.
      group_size: Number of cells, along each axis, that have channels of their own.
      samples_per_part: Samples of a bin along each axis; mmcv's `sampling_ratio`.
      trans_std: How far an offset of one moves a bin, in sizes of the region; mmcv's `gamma`.
      deformable: Whether bins are displaced; plain position-sensitive pooling if not.
      modulated: Whether bins are weighted by a mask: version 2 of the paper.
      joint: Whether one branch predicts both offset and mask.
      aligned: Whether `jax_dcn.deform_roi_align` pools, as in mmcv. `False`: `jax_dcn.deform_roi_pool`
        pools, as in the original.
      hidden_features: Number of features of the hidden layers; refused with `deformable=False`.
      dtype: Dtype of images and branches. By default, images keep their dtype, and the branches
        promote their input and parameters.
      param_dtype: Dtype of the parameters.
      kernel_init: Initialiser of the hidden layers of the branches.
      implementation: See `jax_dcn.deform_roi_pool`.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if the
        input does not fit. The message names the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, jax_dcn.linen
      >>> pool = jax_dcn.linen.DeformRoIPool(64, 7, spatial_scale=1 / 16, hidden_features=128)
      >>> x = jnp.ones((2, 25, 38, 64))
      >>> rois = jnp.array([[0, 32, 16, 320, 240], [1, 0, 0, 96, 128]], jnp.float32)
      >>> variables = pool.init(jax.random.key(0), x, rois)
      >>> pool.apply(variables, x, rois).shape
      (2, 7, 7, 64)

    References:
      Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
    """

    output_dim: int
    pooled_size: int
    spatial_scale: float
    group_size: int = 1
    samples_per_part: int = 4
    trans_std: float = 0.1
    deformable: bool = True
    modulated: bool = True
    joint: bool = False
    aligned: bool = False
    hidden_features: int = roi_layers.HIDDEN_FEATURES
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    implementation: Implementation = None

    def __post_init__(self) -> None:
        """Refuses options that are wrong, or that have no effect beside the others."""
        roi_layers.check_options(self)
        function("kernel_init", self.kernel_init)
        super().__post_init__()

    def setup(self) -> None:
        for name, features in roi_layers.branch_features(self).items():
            for i, size in enumerate(features):
                last = i == len(features) - 1
                dense = nn.Dense(
                    size,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    kernel_init=nn.initializers.zeros_init() if last else self.kernel_init,
                )
                setattr(self, f"{name}_{2 * i}", dense)

    def __call__(self, x: jax.Array, rois: jax.Array) -> jax.Array:
        """Images `[N, H, W, group_size**2 * D]` and regions `[R, 5]` to `[R, P, P, D]`."""
        x = self._images(x)
        offset, mask = self._offset_and_mask(x, rois)
        return roi_layers.pool(self, x, rois, offset, mask)

    def offset_and_mask(
        self, x: jax.Array, rois: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """The offset `[R, P, P, 1, 2]`, `(dy, dx)` over `trans_std`, and the mask `[R, P, P]`."""
        return self._offset_and_mask(self._images(x), rois)

    def _images(self, x: jax.Array) -> jax.Array:
        return promote_dtype(roi_layers.images(self, x), dtype=self.dtype)[0]

    def _offset_and_mask(
        self, x: jax.Array, rois: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        if not self.deformable:
            return None, None
        flat = roi_layers.branch_input(roi_layers.pool(self, x, rois))
        branches = roi_layers.branch_features(self)
        predicted = {name: self._branch(name, len(branches[name]), flat) for name in branches}
        return roi_layers.offset_and_mask(self, predicted)

    def _branch(self, name: str, layers: int, hidden: jax.Array) -> jax.Array:
        for i in range(layers):
            hidden = getattr(self, f"{name}_{2 * i}")(roi_layers.relu(hidden) if i else hidden)
        return hidden

    def sampling_positions(self, x: jax.Array, rois: jax.Array) -> jax.Array:
        """Where every bin samples `x`, to draw it: `(y, x)` in pixels of `x`, `[R, P, P, S, S, 2]`.

        With `samples_per_part=0`, `S` is 1: the middle of a bin stands for its samples.
        """
        x = self._images(x)
        return roi_layers.positions(self, x, rois, self._offset_and_mask(x, rois)[0])
