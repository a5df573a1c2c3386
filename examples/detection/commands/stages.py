# SPDX-License-Identifier: MIT
"""Every intermediate result of a detector, to compare with other programs."""

import pathlib
import sys

import numpy as np
import tyro
from flax import nnx

from examples.detection.commands.weights import load_published
from examples.detection.data.images import batch
from examples.detection.data.masks import paste
from examples.detection.model.architecture import Architecture, View
from examples.detection.model.boxes import Conventions
from examples.detection.model.detect import Images, Stages, run
from examples.imagenet.errors import check_option, check_suffix
from examples.imagenet.readers import decode


def stages(
    weights: tyro.conf.Positional[pathlib.Path],
    image: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    architecture: Architecture = Architecture(),
    key: str | None = None,
    score_threshold: float = 0.05,
    resize: bool = True,
) -> None:
    """Writes what every stage of a published detector gives for one image.

    Arrays have PyTorch's order of axes: `input` `[3, H, W]`; `C2` to `C5` and `P2` to `P6`
    `[C, H, W]`; `rpn_cls2` to `rpn_cls6` `[3, H, W]` (before the sigmoid) and `rpn_reg2` to
    `rpn_reg6` `[12, H, W]`; `proposals` `[R, 4]` and `proposal_scores`; `boxes` `[D, 4]`, `scores`
    and `labels`, best first; and of Mask R-CNN `masks` `[D, height, width]`, booleans.

    Args:
      weights: A file .safetensors, or .pth (which needs torch), with the names of mmdetection.
      image: An image file.
      output: A file .npz to write.
      architecture: The detector that the weights are of.
      key: The entry of a .pth file that holds the weights, if several do, such as state_dict.
      score_threshold: Detections have higher scores.
      resize: Resize the image to `short` pixels, at most `long`; else keep the size.
    """
    check_option("score_threshold", score_threshold, 0, 1)
    check_suffix(output, [".npz"])
    view = architecture.view if resize else _unresized(architecture)
    pixels = decode(image)
    detector = load_published(weights, architecture, key).detector
    rule = architecture.rule
    images = batch([pixels], view)
    computed = nnx.jit(run)(detector, images, score_threshold)
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **arrays(computed, images, pixels.shape[:2], rule))
    print(f"Wrote {output}.")


def _unresized(architecture: Architecture) -> View:
    if (architecture.short, architecture.long) != (Architecture.short, Architecture.long):
        print("Note: --short and --long have no effect with --no-resize.", file=sys.stderr)
    return architecture.view._replace(short=None)


def arrays(
    computed: Stages, images: Images, size: tuple[int, int], rule: Conventions
) -> dict[str, np.ndarray]:
    """The stages of the first image of a batch, by name."""
    maps = {"input": images.pixels}
    maps |= {f"C{level}": x for level, x in enumerate(computed.backbone, start=2)}
    maps |= {f"P{level}": x for level, x in enumerate(computed.pyramid, start=2)}
    for level, (logits, deltas) in enumerate(computed.rpn, start=2):
        maps |= {f"rpn_cls{level}": logits, f"rpn_reg{level}": deltas}
    proposals, detections = computed.proposals, computed.detections
    lists = {
        "proposals": (proposals.boxes, proposals.valid),
        "proposal_scores": (proposals.scores, proposals.valid),
        "boxes": (detections.boxes, detections.valid),
        "scores": (detections.scores, detections.valid),
        "labels": (np.asarray(detections.labels, np.int64), detections.valid),
    }
    result = {name: np.moveaxis(np.asarray(x[0]), -1, 0) for name, x in maps.items()}
    result |= {name: _valid(*pair) for name, pair in lists.items()}
    if detections.masks is not None:
        masks = _valid(detections.masks, detections.valid)
        result["masks"] = paste(masks, result["boxes"], size, rule)
    return result


def _valid(array, valid) -> np.ndarray:
    return np.asarray(array[0])[np.asarray(valid[0])]
