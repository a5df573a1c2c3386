# SPDX-License-Identifier: MIT
"""Draws where a detector looks: the samples of deformable convolutions, and the bins of pooling."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.detection.commands.predict import Loaded, find_in, images_of, load_detector
from examples.detection.model.architecture import Architecture
from examples.detection.model.boxes import STRIDES, levels
from examples.detection.model.detect import Detections, Images
from examples.imagenet.errors import PICTURES, UserError, check_option, check_suffix
from examples.imagenet.readers import decode
from examples.imagenet.samples import Samples, samples_of
from examples.imagenet.state import split
from examples.imagenet.visualize import draw_samples, is_deformable


def visualize(
    run: tyro.conf.Positional[pathlib.Path],
    image: tyro.conf.Positional[pathlib.Path],
    *,
    output: pathlib.Path = pathlib.Path("build/looks.png"),
    detections: int = 3,
    layers: int = 2,
    score_threshold: float = 0.3,
    step: int | None = None,
) -> None:
    """Draws where the deformable layers look for the best detections of an image.

    Args:
      run: Folder of a training run, or of imported weights.
      image: An image file.
      output: Picture to write: a column for each detection. The first row has the samples of the
        last deformable convolutions for the middle of the detection, the second row the samples of
        ordinary convolutions, and the third row the moved bins of deformable RoI pooling.
      detections: How many of the best detections to draw.
      layers: How many of the last deformable convolutions to look through.
      score_threshold: Detections have higher scores.
      step: Which checkpoint; by default the best.
    """
    check_option("detections", detections, 1)
    check_option("layers", layers, 1)
    check_option("score_threshold", score_threshold, 0, 1)
    check_suffix(output, PICTURES)
    loaded = load_detector(run, step)
    if not any(_rows(loaded.architecture)):
        raise UserError(f"{run} holds an ordinary detector, which looks where every one looks.")
    pixels = decode(image)
    every = find_in(loaded, pixels, score_threshold)
    if not len(every.labels):
        raise UserError(f"Nothing is found in {image}: lower --score-threshold.")
    best = jax.tree.map(lambda array: array[:detections], every)
    figure = _drawn(loaded, images_of(loaded.architecture, pixels), best, layers)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"Wrote {output}.")


def _rows(architecture: Architecture) -> tuple[int, int]:
    """Rows of pictures for the convolutions, and for pooling."""
    return 2 * is_deformable(architecture), int(architecture.pool != "align")


def _drawn(loaded: Loaded, images: Images, found: Detections, layers: int) -> Figure:
    of_convolutions, of_pooling = _rows(loaded.architecture)
    rows, columns = of_convolutions + of_pooling, len(found.labels)
    view = _view(images)
    boxes = found.boxes * np.tile(np.asarray(images.scales[0]), 2)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    if of_convolutions:
        _draw_looks(axes[:2], view, _samples(loaded, images)[-layers:], boxes)
    if of_pooling:
        _draw_bins(axes[-1], view, boxes, _bins(loaded, images, boxes))
    _label(axes[0], loaded, found)
    return figure


def _view(images: Images) -> np.ndarray:
    """What the detector sees, from 0 to 1, without the padding."""
    height, width = (int(length) for length in images.sizes[0])
    view = np.asarray(images.pixels[0, :height, :width], np.float32)
    return (view - view.min()) / max(float(np.ptp(view)), 1e-6)


def _samples(loaded: Loaded, images: Images) -> list[Samples]:
    backbone = loaded.detector.backbone
    return samples_of(backbone, split(backbone)[1], images.pixels, "features")


def _draw_looks(
    axes: np.ndarray, view: np.ndarray, layers: list[Samples], boxes: np.ndarray
) -> None:
    last = layers[-1]
    ordinary = [layer.undeformed() for layer in layers]
    for column, (x1, y1, x2, y2) in enumerate(boxes):
        cell = np.round(np.array([y1 + y2, x1 + x2]) / 2 / last.scale)
        start = np.clip(cell, 0, np.array(last.mask.shape[:2]) - 1) * last.scale
        through = f"through {len(layers)} layers"
        draw_samples(axes[0, column], view, layers, start, f"deformable, {through}")
        draw_samples(axes[1, column], view, ordinary, start, f"ordinary, {through}")
        for axis in axes[:, column]:
            _draw_box(axis, (x1, y1, x2, y2))


def _bins(loaded: Loaded, images: Images, boxes: np.ndarray) -> list[np.ndarray]:
    """The middles of the bins of every box, `[bins, 2]` as `(y, x)` in pixels of the image."""
    detector = loaded.detector
    pyramid = detector.neck(detector.backbone.features(images.pixels))
    level_of = np.asarray(levels(jnp.asarray(boxes), detector.rule))
    found = []
    for box, level in zip(boxes, level_of, strict=True):
        layer = detector.roi_head.bbox_roi_extractor.roi_layers[int(level)]
        region = jnp.concatenate([jnp.zeros(1), jnp.asarray(box)])[None].astype(jnp.float32)
        position = layer.sampling_positions(pyramid[int(level)], region)[0]
        # The middle of the samples of each bin.
        found.append(STRIDES[int(level)] * np.asarray(position).mean((2, 3)).reshape(-1, 2))
    return found


def _draw_bins(
    axes: np.ndarray, view: np.ndarray, boxes: np.ndarray, bins: list[np.ndarray]
) -> None:
    for axis, box, middles in zip(axes, boxes, bins, strict=True):
        axis.imshow(view)
        axis.plot(*middles.T[::-1], ".", color="red", markersize=4)
        _draw_box(axis, box)
        axis.set_title("middles of the pooled bins", fontsize=9)
        axis.set_axis_off()


def _draw_box(axis: Axes, box) -> None:
    x1, y1, x2, y2 = box
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="cyan"))


def _label(axes: np.ndarray, loaded: Loaded, found: Detections) -> None:
    for row, axis in enumerate(axes):
        name = loaded.class_names[found.labels[row]]
        axis.set_title(f"{name} {found.scores[row]:.2f}: {axis.get_title()}", fontsize=9)
