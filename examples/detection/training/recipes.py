# SPDX-License-Identifier: MIT
"""What a training run can be told, and the presets: recipes that differ in a few values."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from examples.detection.model.architecture import Architecture
from examples.imagenet.errors import OptionError, check_option
from examples.imagenet.settings import Run


@dataclasses.dataclass(frozen=True)
class Settings(Run):
    """A training run of a detector."""

    data: pathlib.Path = tyro.MISSING
    """Folder in COCO's layout: annotations/*train*.json and annotations/*val*.json, and the images in
    folders train* and val*."""
    output: pathlib.Path = pathlib.Path("build/detection")
    architecture: Architecture = dataclasses.field(default_factory=Architecture)
    backbone: pathlib.Path | None = None
    """Folder of a run of examples.imagenet, whose network becomes the backbone, instead of --initial."""
    epochs: float = 12.0
    learning_rate: float = 0.02
    """Learning rate after the warm-up, for 16 images in a step; scaled in proportion to batch-size."""
    warmup_steps: int = 500
    """Steps in which the learning rate rises."""
    warmup_from: float = 0.001
    """Share of the learning rate to start with."""
    drop_at: tuple[float, float] = (8 / 12, 11 / 12)
    """Shares of all steps after which the learning rate falls to a tenth."""
    momentum: float = 0.9
    """Momentum of gradient descent."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters."""
    clip: float = 35.0
    """Largest norm of the gradient; 0 leaves gradients as they are."""
    frozen_stages: int = 1
    """Frozen layers of the backbone: none for -1, the first convolution for 0, c2 as well for 1, and
    so on up to c5 for 4."""
    norm: Literal["kept", "learned"] = "kept"
    """Whether batch normalisations keep the statistics of the initial weights, or learn their own."""
    anchors_per_image: int = 256
    """Anchors that a step trains."""
    regions_per_image: int = 512
    """Regions that a step trains."""
    max_objects: int = 100
    """Most objects of an image that a step sees; further objects are left out."""
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    """Dtype of the networks in training; weights, boxes and losses have at least float32. float64 needs the
    environment variable JAX_ENABLE_X64=1."""
    evaluate_every: int = 10000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("anchors_per_image", "regions_per_image", "max_objects"):
            check_option(name, getattr(self, name), 1)
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip"):
            check_option(name, getattr(self, name), 0)
        for name in ("warmup_from", "momentum"):
            check_option(name, getattr(self, name), 0, 1)
        check_option("frozen_stages", self.frozen_stages, -1, 4)
        for share in self.drop_at:
            check_option("drop_at", share, 0, 1)
        if self.backbone is not None and self.initial is not None:
            raise OptionError(
                "Give --backbone or --initial: the weights of --initial have a backbone."
            )

    @property
    def keeps_random_weights(self) -> bool:
        """Whether layers that training leaves as they are start with random weights."""
        random = self.backbone is None and self.initial is None
        return random and (self.norm == "kept" or self.frozen_stages >= 0)


KEEPS_RANDOM_WEIGHTS = (
    "The backbone has random weights, and layers that do not learn: give --backbone or --initial, or "
    "train from scratch with --norm learned --frozen-stages -1."
)


COMPOSED = Settings(
    data=pathlib.Path("build/composed"),
    output=pathlib.Path("build/detection-composed"),
    architecture=Architecture(
        depth=10,
        width=16,
        features=32,
        hidden=64,
        stages=(4, 5),
        short=128,
        long=128,
        candidates=100,
    ),
    epochs=8.0,
    learning_rate=0.04,
    warmup_steps=100,
    frozen_stages=-1,
    norm="learned",
    anchors_per_image=128,
    regions_per_image=64,
    max_objects=8,
    flip=False,
    workers=0,
    checkpoint_every=200,
    evaluate_every=1000,
    log_every=20,
)
"""A small detector of composed images: minutes on a CPU."""

PRESETS = {"coco": Settings(), "composed": COMPOSED}
DESCRIPTIONS = {
    "coco": "ResNet-50 with a feature pyramid, 12 epochs, as published.",
    "composed": "A small network on what `compose` writes, from scratch: minutes on a CPU.",
}
Preset = tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False)
