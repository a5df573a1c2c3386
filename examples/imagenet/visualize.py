# SPDX-License-Identifier: MIT
"""Draws where the deformable layers of a network look, and how much each tap counts."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.imagenet.errors import PICTURES, UserError, check_option, check_suffix
from examples.imagenet.predict import load_on_one_device, view_of
from examples.imagenet.samples import Samples, samples_of, trace
from examples.imagenet.state import normalise


def visualize(
    run: tyro.conf.Positional[pathlib.Path],
    image: tyro.conf.Positional[pathlib.Path],
    *,
    output: pathlib.Path = pathlib.Path("build/samples.png"),
    at: tuple[float, float] = (0.5, 0.5),
    layers: int = 3,
    step: int | None = None,
) -> None:
    """Draws what the last deformable layers sample in an image.

    Args:
      run: Folder of a training run, or of imported weights.
      image: An image file.
      output: Picture to write.
      at: The output position whose samples are drawn, as shares of height and width.
      layers: How many of the last deformable layers to look through.
      step: Which checkpoint; by default the best.
    """
    check_option("layers", layers, 1)
    for share in at:
        check_option("at", share, 0, 1)
    check_suffix(output, PICTURES)
    network = load_on_one_device(run, step)
    if not is_deformable(network.description.model):
        raise UserError(f"{run} holds an ordinary network, which has no samples to draw.")
    view = view_of(network, image)
    images = normalise(jnp.asarray(view[None]))
    samples = samples_of(network.model, network.weights, images)[-layers:]
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(view, samples, np.array(at), output)
    print(f"Wrote {output}.")


def is_deformable(model: Any) -> bool:
    """Whether the network that these options describe has deformable convolutions."""
    return model.conv != "ordinary" and model.stages != ()


def draw(view: np.ndarray, layers: list[Samples], at: np.ndarray, path: pathlib.Path) -> None:
    """Writes the picture: what one position samples, then offsets and masks of every layer."""
    columns = 1 + len(layers)
    figure = Figure(figsize=(3.2 * columns, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns)
    last = layers[-1]
    cells = np.array(last.mask.shape[:2])
    start = np.minimum((at * cells).astype(int), cells - 1) * last.scale
    through = f"through {len(layers)} layers"
    draw_samples(axes[0, 0], view, layers, start, f"deformable, {through}")
    ordinary = [layer.undeformed() for layer in layers]
    draw_samples(axes[1, 0], view, ordinary, start, f"ordinary, {through}")
    # One scale for all layers, and for masks from zero, so that colours can be compared.
    furthest = max(float(layer.offset_size.max()) for layer in layers) or 1.0
    heaviest = max(float(layer.mask.mean(-1).max()) for layer in layers) or 1.0
    for layer, (above, below) in zip(layers, axes[:, 1:].T, strict=True):
        title = f"{layer.name}: mean offset, image pixels"
        _draw_map(figure, above, view, layer.offset_size, title, "viridis", furthest)
        _draw_map(figure, below, view, layer.mask.mean(-1), "mean mask", "magma", heaviest)
    figure.savefig(path, dpi=110)


def draw_samples(
    axis: Axes, view: np.ndarray, layers: list[Samples], start: np.ndarray, title: str
) -> None:
    """Draws what one output position, at the pixel `start`, gets through `layers`."""
    position, weight = trace(layers, start)
    heaviest = weight.max() or 1.0
    axis.imshow(view)
    axis.scatter(
        *position.T[::-1], s=9 * weight / heaviest, c="red", alpha=0.6, linewidths=0, clip_on=True
    )
    axis.plot(*start[::-1], "+", color="lime", markersize=11, markeredgewidth=2)
    axis.set_title(title, fontsize=9)
    margin = 0.1 * np.array(view.shape[:2])
    axis.set(
        xlim=(-margin[1], view.shape[1] + margin[1]),
        ylim=(view.shape[0] + margin[0], -margin[0]),
    )
    axis.set_axis_off()


def _draw_map(
    figure: Figure,
    axis: Axes,
    view: np.ndarray,
    values: np.ndarray,
    title: str,
    colours: str,
    most: float,
) -> None:
    axis.imshow(view.mean(-1), cmap="gray")
    height, width = view.shape[:2]
    # Output positions cover the image: the edges of both are the same.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    picture = axis.imshow(values, cmap=colours, alpha=0.65, extent=extent, vmin=0, vmax=most)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    figure.colorbar(picture, ax=axis, shrink=0.7)
