# SPDX-License-Identifier: MIT
"""Draws where a query looks, layer by layer and map by map."""

import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.attention.data import SIZE, Images
from examples.attention.model import LAYERS, START, STRIDES, Finder, Look

_QUERY = 0  # The query that is drawn. Queries differ in where they begin.
_COLOURS = ("tab:cyan", "tab:orange", "tab:red")  # The maps, from the largest on.


def draw_looks(model: Finder, images: Images, path: pathlib.Path) -> None:
    """Writes a picture with a column for each image and a row for each layer."""
    looks = model(images.pixels)
    columns = len(images.boxes)
    figure = Figure(figsize=(2.2 * columns, 2.2 * LAYERS + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(LAYERS, columns, squeeze=False)
    for index in range(columns):
        before = START[_QUERY]
        for layer, look in enumerate(looks):
            after = np.asarray(look.box)[index, _QUERY]
            _draw(axes[layer, index], images.pixels[index], look, index)
            _outline(axes[layer, index], before, "white", "--")
            _outline(axes[layer, index], after, "white", "-")
            before = after
    for layer in range(LAYERS):
        axes[layer, 0].set_ylabel(f"layer {layer + 1}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    figure.savefig(path, dpi=100)


def _draw(axes: Axes, pixels: np.ndarray, look: Look, index: int) -> None:
    axes.imshow((pixels + 1) / 2, extent=(0, SIZE, SIZE, 0))
    locations = SIZE * np.asarray(look.locations)[index, _QUERY]
    weights = np.asarray(look.weights)[index, _QUERY]
    levels = len(STRIDES)
    parts = zip(np.split(locations, levels, 1), np.split(weights, levels, 1), strict=True)
    for (at, weight), stride, colour in zip(parts, STRIDES, _COLOURS, strict=True):
        x, y = at.reshape(-1, 2).T
        label = f"map of stride {stride}"
        axes.scatter(x, y, s=200 * weight.ravel(), color=colour, label=label, linewidths=0)
    axes.set(xlim=(0, SIZE), ylim=(SIZE, 0), xticks=[], yticks=[])


def _outline(axes: Axes, box: np.ndarray, colour: str, style: str) -> None:
    x, y, width, height = SIZE * box
    corner = x - width / 2, y - height / 2
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linestyle=style))
