# SPDX-License-Identifier: MIT
"""The networks of a detector, from an image to raw scores; modules are named as in mmdetection."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from examples.detection.model.boxes import ANCHORS, STRIDES, Conventions, levels
from examples.imagenet.models import ResNet
from jax_dcn import deform_roi_align
from jax_dcn.nnx import DeformRoIPool

_ROI_STRIDES = STRIDES[:4]  # P6 only proposes.

_normal = nnx.initializers.normal(0.01)
_xavier = nnx.initializers.xavier_uniform()
_relu_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvModule(nnx.Module):
    """A convolution under the name `conv`, as mmdetection wraps it."""

    def __init__(self, features: int, out_features: int, size: int, kernel_init, rngs: nnx.Rngs):
        self.conv = _conv(features, out_features, size, kernel_init, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class FPN(nnx.Module):
    """A feature pyramid: C2 to C5 become P2 to P6, all with the same number of features."""

    def __init__(self, in_features: tuple[int, ...], features: int, rngs: nnx.Rngs):
        self.lateral_convs = nnx.List(
            [ConvModule(count, features, 1, _xavier, rngs) for count in in_features]
        )
        self.fpn_convs = nnx.List(
            [ConvModule(features, features, 3, _xavier, rngs) for _ in in_features]
        )

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        merged = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            merged[level] += _double(merged[level + 1])
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        return [*pyramid, pyramid[-1][:, ::2, ::2]]


class RPNHead(nnx.Module):
    """Scores `[N, H, W, 3]` and deltas `[N, H, W, 12]` of the anchors of a pyramid level."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.rpn_conv = _conv(features, features, 3, _normal, rngs)
        self.rpn_cls = _conv(features, ANCHORS, 1, _normal, rngs)
        self.rpn_reg = _conv(features, ANCHORS * 4, 1, _normal, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.rpn_conv(x))
        return _wide(self.rpn_cls(x)), _wide(self.rpn_reg(x))


class RoIExtractor(nnx.Module):
    """Pools each region from the pyramid level of its size.

    Args:
      pool: `"align"`, RoIAlign; or modulated deformable pooling with the arithmetic of `"mmcv"` or
        of the `"original"`, which has its own fully connected branches on every level.
      hidden: Features of these branches.
    """

    def __init__(
        self,
        size: int,
        features: int,
        pool: str,
        rule: Conventions,
        rngs: nnx.Rngs,
        hidden: int = 1024,
    ):
        self.size = size
        self.rule = rule
        self.implementation = None
        if pool == "align":
            return
        make = functools.partial(DeformRoIPool, features, size, hidden_features=hidden, rngs=rngs)
        if pool == "mmcv":
            make = functools.partial(make, aligned=True, samples_per_part=0)
        self.roi_layers = nnx.List([make(spatial_scale=1 / stride) for stride in _ROI_STRIDES])

    def __call__(self, pyramid: list[jax.Array], boxes: jax.Array, valid: jax.Array) -> jax.Array:
        """Boxes `[N, R, 4]` to features `[N * R, size, size, C]`; invalid boxes get zeros."""
        images = jnp.arange(boxes.shape[0], dtype=boxes.dtype)[:, None]
        own_level = levels(boxes, self.rule)
        pooled = []
        for level, x in enumerate(pyramid[: len(_ROI_STRIDES)]):
            # A region of no image pools to zero, so the sum over levels has one term.
            image = jnp.where(valid & (own_level == level), images, -1)
            rois = jnp.concatenate([image[..., None], boxes], axis=-1).reshape(-1, 5)
            pooled.append(self._pool(level, x, rois))
        return functools.reduce(jnp.add, pooled)

    def _pool(self, level: int, x: jax.Array, rois: jax.Array) -> jax.Array:
        if hasattr(self, "roi_layers"):
            return self.roi_layers[level](x, rois)
        stride, rule = _ROI_STRIDES[level], self.rule
        # `deform_roi_align` has pixel middles at 0.5 and regions that end at x2.
        start = stride * (0.5 - rule.half_pixel)
        move = jnp.array([[0, start, start, start + rule.extent, start + rule.extent]], rois.dtype)
        return deform_roi_align(
            x,
            rois + move,
            spatial_scale=1 / stride,
            pooled_size=self.size,
            sampling_ratio=rule.sampling_ratio,
            implementation=self.implementation,
        )


class BoxHead(nnx.Module):
    """Logits `[R, classes + 1]`, background last, and deltas `[R, regressions, 4]` of regions."""

    def __init__(
        self, size: int, features: int, hidden: int, classes: int, regressions: int, rngs: nnx.Rngs
    ):
        self.shared_fcs = nnx.List(
            [
                nnx.Linear(count, hidden, kernel_init=_xavier, rngs=rngs)
                for count in (size**2 * features, hidden)
            ]
        )
        self.fc_cls = nnx.Linear(hidden, classes + 1, kernel_init=_normal, rngs=rngs)
        small = nnx.initializers.normal(0.001)
        self.fc_reg = nnx.Linear(hidden, 4 * regressions, kernel_init=small, rngs=rngs)

    def __call__(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The order of published checkpoints: feature, row, column.
        x = jnp.moveaxis(pooled, -1, 1).reshape(pooled.shape[0], -1)
        for layer in self.shared_fcs:
            x = nnx.relu(layer(x))
        return _wide(self.fc_cls(x)), _wide(self.fc_reg(x)).reshape(x.shape[0], -1, 4)


class MaskHead(nnx.Module):
    """Mask logits `[R, 2 * size, 2 * size, classes]` of regions `[R, size, size, C]`."""

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [ConvModule(features, features, 3, _relu_init, rngs) for _ in range(4)]
        )
        # The transpose of a convolution, as in PyTorch, the order of the kernel's axes included.
        self.upsample = nnx.ConvTranspose(
            features,
            features,
            (2, 2),
            2,
            padding="VALID",
            transpose_kernel=True,
            kernel_init=_relu_init,
            rngs=rngs,
        )
        self.conv_logits = _conv(features, classes, 1, _relu_init, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.convs:
            x = nnx.relu(layer(x))
        return _wide(self.conv_logits(nnx.relu(self.upsample(x))))


class RoIHead(nnx.Module):
    """All that looks at regions; `bbox_head` is a list of heads in a cascade."""

    def __init__(
        self,
        bbox_head: BoxHead | nnx.List,
        bbox_roi_extractor: RoIExtractor,
        mask_head: MaskHead | None,
        mask_roi_extractor: RoIExtractor | None,
    ):
        self.bbox_head = bbox_head
        self.bbox_roi_extractor = bbox_roi_extractor
        self.mask_head = mask_head
        self.mask_roi_extractor = mask_roi_extractor

    @property
    def box_heads(self) -> list[BoxHead]:
        """The box heads in the order in which they refine a box."""
        return list(self.bbox_head) if isinstance(self.bbox_head, nnx.List) else [self.bbox_head]


class Detector(nnx.Module):
    """The parts of a detector and the conventions that its weights were trained with."""

    def __init__(
        self, backbone: ResNet, neck: FPN, rpn_head: RPNHead, roi_head: RoIHead, rule: Conventions
    ):
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.rule = rule

    @property
    def training_rule(self) -> Conventions:
        """The conventions, with as many candidates and proposals as in training."""
        rule = self.rule
        return dataclasses.replace(
            rule, candidates=rule.training_candidates, proposals=rule.training_proposals
        )


def _conv(features: int, out_features: int, size: int, kernel_init, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features,
        out_features,
        (size, size),
        padding=size // 2,
        kernel_init=kernel_init,
        rngs=rngs,
    )


def _wide(x: jax.Array) -> jax.Array:
    """In at least float32, in which boxes and losses are computed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _double(x: jax.Array) -> jax.Array:
    """Every pixel as two by two."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
