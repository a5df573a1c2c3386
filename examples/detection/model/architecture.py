# SPDX-License-Identifier: MIT
"""Which detector: the options that every checkpoint keeps."""

import dataclasses
import functools
import sys
from typing import Literal, NamedTuple

from flax import nnx

from examples.detection.model.boxes import CONVENTIONS, Conventions
from examples.detection.model.networks import (
    FPN,
    BoxHead,
    Detector,
    MaskHead,
    RoIExtractor,
    RoIHead,
    RPNHead,
)
from examples.imagenet.errors import OptionError, check_option
from examples.imagenet.models import BasicBlock, Bottleneck, ResNet, resnet
from jax_dcn.nnx import DeformConv

_POOLED = 7
_POOLED_FOR_MASK = 14
_CASCADE_HEADS = 3


_STRIDE = 32  # Pixels between neighbours of C5. A padded size is a multiple of this stride.


class View(NamedTuple):
    """How images are resized."""

    short: int | None
    """Height or width, whichever is smaller, after resizing; `None` keeps the size."""
    long: int
    """Largest height and width after resizing."""
    one_scale: bool = False
    """Whether both scales are the factor of the resizing; otherwise ratios of whole pixels."""

    def canvas(self, high: bool) -> tuple[int, int]:
        """Height and width of arrays that hold every image that is higher than wide, or not."""
        lengths = padded_length(self.short), padded_length(self.long)
        return lengths[::-1] if high else lengths


def padded_length(pixels: int) -> int:
    """The next length that all levels of the pyramid divide."""
    return -(-pixels // _STRIDE) * _STRIDE


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A detector without its weights."""

    model: Literal["faster", "mask", "cascade"] = "faster"
    """Faster R-CNN, Mask R-CNN, or Cascade R-CNN."""
    conv: Literal["ordinary", "deformable", "modulated"] = "modulated"
    """The 3x3 convolutions of the backbone in `stages`: ordinary, or deformable as in version 1 or
    version 2 of the paper."""
    offset_groups: int = 1
    """Groups of channels of a deformable convolution that have offsets of their own."""
    stages: tuple[int, ...] = (3, 4, 5)
    """Stages c2 to c5 of the backbone that have convolutions of this kind."""
    pool: Literal["align", "mmcv", "original"] = "align"
    """How regions are pooled: RoIAlign, or modulated deformable RoI pooling as in mmcv or as in the
    original repository."""
    conventions: Literal["mmdet3", "seed"] = "mmdet3"
    """How boxes are measured: as in mmdetection 2 and 3, or as in mmdetection 0.5, with which the
    original repository trained."""
    depth: int = 50
    """Layers of the ResNet: 18, 34, 50 or 101; or 10, for trials."""
    width: int = 64
    """Features of the first stage of the backbone."""
    features: int = 256
    """Features of the pyramid."""
    hidden: int = 1024
    """Features of the fully connected layers of the box head, and of the branches that move bins."""
    short: int = 800
    """Length of the shorter side of an image, in pixels, if the longer side stays within `long`."""
    long: int = 1333
    """Largest length of the longer side of an image, in pixels."""
    candidates: int | None = None
    """How many anchors of a level, and proposals of an image, are kept; by default as `conventions`
    say."""

    def __post_init__(self) -> None:
        names = ("offset_groups", "width", "features", "hidden", "short", "long", "candidates")
        for name in names:
            check_option(name, getattr(self, name), 1)

    @property
    def view(self) -> View:
        """How images are resized."""
        return View(self.short, self.long, self.rule.one_scale)

    @property
    def rule(self) -> Conventions:
        """How boxes are measured, and how many are proposed."""
        rule = CONVENTIONS[self.conventions]
        changes: dict = {}
        # As mmdetection configures these two.
        if self.model == "cascade":
            changes |= dict(
                bend=CONVENTIONS["seed"].bend, anchors_inside=True, training_proposals=2000
            )
        if self.model == "mask":
            changes |= dict(best_region=True)
        if self.candidates is not None:
            names = ("candidates", "training_candidates", "proposals", "training_proposals")
            changes |= dict.fromkeys(names, self.candidates)
        return dataclasses.replace(rule, **changes)

    def build(self, classes: int, seed: int = 0) -> Detector:
        """A fresh detector."""
        if self.model == "cascade" and self.pool != "align":
            raise OptionError(f"--model cascade pools by --pool align, not by --pool {self.pool}.")
        rngs = nnx.Rngs(seed)
        backbone = self._backbone(rngs)
        neck = FPN(self._backbone_features(), self.features, rngs)
        rpn_head = RPNHead(self.features, rngs)
        return Detector(backbone, neck, rpn_head, self._roi_head(classes, rngs), self.rule)

    def _backbone(self, rngs: nnx.Rngs) -> ResNet:
        if self.conv == "ordinary" and self.offset_groups > 1:
            print("Note: --offset-groups has no effect with --conv ordinary.", file=sys.stderr)
        deformable = functools.partial(
            DeformConv, modulated=self.conv == "modulated", offset_groups=self.offset_groups
        )
        conv = nnx.Conv if self.conv == "ordinary" else deformable
        try:
            return resnet(
                self.depth, None, conv=conv, stages=self.stages, width=self.width, rngs=rngs
            )
        except ValueError as error:
            raise OptionError(str(error)) from error

    def _backbone_features(self) -> tuple[int, ...]:
        block = BasicBlock if self.depth < 50 else Bottleneck
        return tuple(self.width * 2**stage * block.expansion for stage in range(4))

    def _roi_head(self, classes: int, rngs: nnx.Rngs) -> RoIHead:
        rule = self.rule
        cascade, masks = self.model == "cascade", self.model == "mask"
        make_head = functools.partial(
            BoxHead, _POOLED, self.features, self.hidden, classes, 1 if cascade else classes, rngs
        )
        return RoIHead(
            nnx.List([make_head() for _ in range(_CASCADE_HEADS)]) if cascade else make_head(),
            RoIExtractor(_POOLED, self.features, self.pool, rule, rngs, self.hidden),
            MaskHead(self.features, classes, rngs) if masks else None,
            RoIExtractor(_POOLED_FOR_MASK, self.features, "align", rule, rngs) if masks else None,
        )
