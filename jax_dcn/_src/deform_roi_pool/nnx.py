# SPDX-License-Identifier: MIT
"""Deformable RoI pooling as a Flax NNX module."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jax_dcn._src.arguments import function, renamed, static
from jax_dcn._src.deform_roi_pool import layer as roi_layers
from jax_dcn._src.deform_roi_pool.hints import ABSENT_OPTIONS, OPTIONS
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.nnx import check_rngs
from jax_dcn._src.public import public


@public("jax_dcn.nnx")
class DeformRoIPool(nnx.Module):
    r"""Pools regions at bins that it displaces and modulates after a first look at the region.

    A region is pooled plainly; fully connected branches predict from that, for every bin, an offset
    and, if `modulated`, a mask `sigmoid(logits)`; and the region is pooled again with those. The
    last layers of the branches start at zero: a fresh layer pools plainly, and, if `modulated`,
    counts every bin half, as in the paper.

    | checkpoint | options |
    |---|---|
    | `DeformRoIPooling` (the original) | `deformable=False` |
    | `DeformRoIPoolingPack` (mmdetection before 2.0) | `modulated=False` |
    | `ModulatedDeformRoIPoolingPack` (the original, mmdetection before 2.0) | the defaults |
    | `DeformRoIPoolingPack` (the original, for PyTorch 1.0) | `joint=True` |
    | `DeformRoIPoolPack` (mmcv) | `aligned=True, samples_per_part=0, modulated=False` |
    | `ModulatedDeformRoIPoolPack` (mmcv) | `aligned=True, samples_per_part=0` |

    Args:
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
      rngs: Random streams; `params` initialises the hidden layers.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if the
        input does not fit. The message names the argument.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> from flax import nnx
      >>> pool = jax_dcn.nnx.DeformRoIPool(
      ...     64, 7, spatial_scale=1 / 16, hidden_features=128, rngs=nnx.Rngs(0)
      ... )
      >>> rois = jnp.array([[0, 32, 16, 320, 240], [1, 0, 0, 96, 128]], jnp.float32)
      >>> pool(jnp.ones((2, 25, 38, 64)), rois).shape
      (2, 7, 7, 64)

    References:
      Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
    """

    @renamed(OPTIONS, ABSENT_OPTIONS)
    def __init__(
        self,
        output_dim: int,
        pooled_size: int,
        *,
        spatial_scale: float,
        group_size: int = 1,
        samples_per_part: int = 4,
        trans_std: float = 0.1,
        deformable: bool = True,
        modulated: bool = True,
        joint: bool = False,
        aligned: bool = False,
        hidden_features: int = roi_layers.HIDDEN_FEATURES,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        kernel_init: Callable[..., jax.Array] = nnx.initializers.lecun_normal(),
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.output_dim = output_dim
        self.pooled_size = pooled_size
        self.spatial_scale = spatial_scale
        self.group_size = group_size
        self.samples_per_part = samples_per_part
        self.trans_std = trans_std
        self.deformable = deformable
        self.modulated = modulated
        self.joint = joint
        self.aligned = aligned
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.implementation = static(implementation)
        roi_layers.check_options(self)
        function("kernel_init", kernel_init)
        check_rngs(rngs)
        for name, features in roi_layers.branch_features(self).items():
            sizes = (pooled_size**2 * output_dim, *features)
            layers: list[Callable[..., jax.Array]] = []
            for before, after in itertools.pairwise(sizes):
                last = len(layers) == 2 * len(features) - 2
                linear = nnx.Linear(
                    before,
                    after,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    kernel_init=nnx.initializers.zeros_init() if last else kernel_init,
                    rngs=rngs,
                )
                layers += [linear] if last else [linear, roi_layers.relu]
            setattr(self, name, nnx.List(layers))

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
        return dtypes.promote_dtype((roi_layers.images(self, x),), dtype=self.dtype)[0]

    def _offset_and_mask(
        self, x: jax.Array, rois: jax.Array
    ) -> tuple[jax.Array | None, jax.Array | None]:
        if not self.deformable:
            return None, None
        flat = roi_layers.branch_input(roi_layers.pool(self, x, rois))
        predicted = {
            name: functools.reduce(lambda h, layer: layer(h), getattr(self, name), flat)
            for name in roi_layers.branch_features(self)
        }
        return roi_layers.offset_and_mask(self, predicted)

    def sampling_positions(self, x: jax.Array, rois: jax.Array) -> jax.Array:
        """Where every bin samples `x`, to draw it: `(y, x)` in pixels of `x`, `[R, P, P, S, S, 2]`.

        With `samples_per_part=0`, `S` is 1: the middle of a bin stands for its samples.
        """
        x = self._images(x)
        return roi_layers.positions(self, x, rois, self._offset_and_mask(x, rois)[0])
