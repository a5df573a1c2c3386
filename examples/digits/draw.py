# SPDX-License-Identifier: MIT
"""Draws where the deformable convolutions of a classifier sample an image, and with what mask."""

import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from examples.digits.data import CANVAS, Scans
from examples.digits.models import Classifier

_STRIDE = 2  # Of every convolution; its centre tap reads pixel `_STRIDE * output pixel + 1`.
_FAR_PIXEL = np.array([1, 1])  # The middle of the last map's 3x3 positions.
_NEAR_PIXELS = np.array([[1, 2], [2, 4], [4, 2]])  # Of the first stage's 6x6 positions.
_COLOURS = ScalarMappable(Normalize(0, 2), matplotlib.colormaps["coolwarm"])
_EXPLANATION = (
    "Where one output pixel (+) gets its value from: every dot is a sampled position, the larger "
    "and redder, the larger its mask.\nAn ordinary convolution samples the same grid in every "
    "image. A deformable one places its taps, and weights them, by what it sees."
)


class Samples(NamedTuple):
    """Positions `[..., K, 2]`, as `(y, x)` in pixels of a layer's input, and their mask."""

    position: np.ndarray
    mask: np.ndarray


def draw_samples(model: Classifier, images: Scans, path: pathlib.Path) -> None:
    """Writes a picture with a column for each of a few images `[N, CANVAS, CANVAS, 1]`."""
    deformed, regular = zip(*_stage_samples(model, images.images), strict=True)
    columns = len(images.labels)
    figure = Figure(figsize=(1.9 * columns + 1.2, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, columns, squeeze=False)
    for index, (ordinary, both, single) in enumerate(axes.T):
        for axis in (ordinary, both, single):
            _draw_image(axis, images.images[index, :, :, 0])
        _draw_both_layers(ordinary, *(_of_image(samples, index) for samples in regular))
        _draw_both_layers(both, *(_of_image(samples, index) for samples in deformed))
        _draw_one_layer(single, _of_image(deformed[0], index), _of_image(regular[0], index))
        ordinary.set_title(f"digit {images.labels[index]}", fontsize=10)
    _label(figure, axes)
    figure.savefig(path, dpi=120)


def first_of_each_digit(images: Scans, digits: tuple[int, ...] = (2, 3, 4, 5, 6, 9)) -> Scans:
    """A few images by a rule that leaves no choice: the first of each of `digits`."""
    indices = [int(np.argmax(images.labels == digit)) for digit in digits]
    return Scans(images.images[indices], images.labels[indices])


def _stage_samples(model: Classifier, images: np.ndarray) -> list[tuple[Samples, Samples]]:
    """What each deformable stage samples, and what an ordinary one would."""
    samples = []
    for stage, x in zip(model.stages, model.stage_inputs(jnp.asarray(images)), strict=True):
        position, mask = (np.asarray(array)[:, :, :, 0] for array in stage.sampling_positions(x))
        offset = np.asarray(stage.offset_and_mask(x)[0])[:, :, :, 0]
        regular = Samples(position - offset, np.ones_like(mask))
        samples.append((Samples(position, mask), regular))
    return samples


def _of_image(samples: Samples, index: int) -> Samples:
    return Samples(samples.position[index], samples.mask[index])


def _through_both(first: Samples, last: Samples) -> Samples:
    """What `_FAR_PIXEL` of the last stage gets from the input of the first, `[81, 2]`."""
    position, mask = (array[tuple(_FAR_PIXEL)] for array in last)
    size = np.array(first.position.shape[:2])
    # The first stage's offsets are known at whole pixels: we take those of the nearest.
    pixel = np.clip(np.round(position), 0, size - 1).astype(int)
    nearest_y, nearest_x = pixel.T
    moved = first.position[nearest_y, nearest_x] + _STRIDE * (position - pixel)[:, None]
    inside = np.all((position > -1) & (position < size), axis=-1)
    # The geometric mean, so that one colour scale serves one layer and two.
    weight = np.sqrt((mask * inside)[:, None] * first.mask[nearest_y, nearest_x])
    return Samples(moved.reshape(-1, 2), weight.reshape(-1))


def _image_position(pixel: np.ndarray, layers: int) -> np.ndarray:
    """Where a position in the output of the first `layers` convolutions is in the image."""
    for _ in range(layers):
        pixel = _STRIDE * pixel + 1
    return pixel


def _draw_image(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1.8, interpolation="bicubic")
    axis.set(xticks=[], yticks=[], xlim=(-3.5, CANVAS + 2.5), ylim=(CANVAS + 2.5, -3.5))
    axis.spines[:].set_visible(False)
    frame = np.array([-0.5, CANVAS - 0.5])
    axis.plot(frame[[0, 1, 1, 0, 0]], frame[[0, 0, 1, 1, 0]], color="0.75", linewidth=0.8, zorder=1)


def _draw_both_layers(axis: Axes, first: Samples, last: Samples) -> None:
    _draw_dots(axis, _through_both(first, last))
    _draw_pixel(axis, _image_position(_FAR_PIXEL, layers=3))


def _draw_one_layer(axis: Axes, samples: Samples, regular: Samples) -> None:
    for pixel in _NEAR_PIXELS:
        position, mask = (array[tuple(pixel)] for array in samples)
        start, end = (_image_position(q, 1) for q in (regular.position[tuple(pixel)], position))
        moves = np.stack([start, end], axis=1)[..., ::-1]
        axis.add_collection(LineCollection(moves, colors="0.45", linewidths=0.7))
        _draw_dots(axis, Samples(position, mask))
        _draw_pixel(axis, _image_position(pixel, layers=2))


def _draw_dots(axis: Axes, samples: Samples) -> None:
    y, x = _image_position(samples.position, layers=1).T
    colours = _COLOURS.to_rgba(samples.mask)
    axis.scatter(x, y, s=16 * samples.mask, c=colours, linewidths=0.3, edgecolors="0.2", zorder=3)


def _draw_pixel(axis: Axes, position: np.ndarray) -> None:
    y, x = position
    axis.plot(x, y, "+", color="black", markersize=9, markeredgewidth=1.8, zorder=4)


def _label(figure: Figure, axes: np.ndarray) -> None:
    figure.suptitle(_EXPLANATION, fontsize=10.5)
    titles = (
        "ordinary,\nthrough both layers",
        "deformable,\nthrough both layers",
        "deformable, first layer,\nlines from the grid",
    )
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=9.5)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure.colorbar(_COLOURS, ax=axes, label="mask (both layers: geometric mean)", shrink=0.7)
