# SPDX-License-Identifier: MIT
"""What is in an image."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import tyro

from examples.imagenet.data import centre_view
from examples.imagenet.devices import one_device
from examples.imagenet.errors import UserError, check_option
from examples.imagenet.evaluate import Network, load
from examples.imagenet.readers import decode
from examples.imagenet.state import make_predictor


def predict(
    run: tyro.conf.Positional[pathlib.Path],
    images: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    *,
    top: int = 5,
    step: int | None = None,
) -> None:
    """Prints the most probable classes of images.

    Args:
      run: Folder of a training run, or of imported weights.
      images: Image files.
      top: How many classes to print.
      step: Which checkpoint; by default the best.
    """
    if not images:
        raise UserError("There is no image to look at: name one or more files after the run.")
    check_option("top", top, 1)
    network = load_on_one_device(run, step)
    probabilities_of = make_probabilities(network)
    for path in images:
        probabilities = probabilities_of(view_of(network, path))
        print(path)
        for index in np.argsort(-probabilities)[:top]:
            name = network.description.class_names[index]
            print(f"  {100 * probabilities[index]:5.1f} %  {name}")


def load_on_one_device(run: pathlib.Path, step: int | None) -> Network:
    """The network of a checkpoint, to use on a few images."""
    return load(run, step, one_device(), "float32")


def view_of(network: Network, path: pathlib.Path) -> np.ndarray:
    """What the network sees of an image file, `[size, size, 3]`."""
    return centre_view(decode(path), network.description.model.image_size)


def make_probabilities(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a view `[size, size, 3]` to the probability of every class."""
    predict_logits = make_predictor(network.model)
    compiled = jax.jit(lambda weights, images: jax.nn.softmax(predict_logits(weights, images)))
    return lambda view: np.asarray(compiled(network.weights, view[None])[0])
