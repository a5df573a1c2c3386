# SPDX-License-Identifier: MIT
"""Command line: `python -m examples.attention --help`."""

import pathlib
import sys
import time
from collections.abc import Sequence

import tyro
from flax import nnx
from tqdm import trange

from examples.attention.data import Images, compose_images
from examples.attention.draw import draw_looks
from examples.attention.model import Finder
from examples.attention.train import overlaps, train
from examples.imagenet.command_line import in_words
from examples.imagenet.errors import check_option
from examples.imagenet.settings import LARGEST_SEED

_SHOWN = 5  # Images of the picture.


def find_digits(
    *,
    output: pathlib.Path = pathlib.Path("build/attention"),
    steps: int = 1000,
    train_images: int = 2000,
    val_images: int = 500,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Trains the queries of deformable attention to find a digit on a photograph.

    Prints how well the boxes of the queries fit the digit, before and after training, and draws
    where a query looks in the three maps of the image.

    Args:
      output: Folder of the picture.
      steps: Training steps.
      train_images: Images to train on.
      val_images: Images to test on, of other photographs and digits.
      batch_size: Images of a step.
      learning_rate: Of Adam, at most.
      seed: Of images, parameters and batches.
    """
    sizes = dict(train_images=train_images, val_images=val_images, batch_size=batch_size)
    for name, value in dict(steps=steps, **sizes).items():
        check_option(name, value, 1)
    check_option("learning_rate", learning_rate, 0)
    check_option("seed", seed, 0, LARGEST_SEED)
    output.mkdir(parents=True, exist_ok=True)
    learn = compose_images("train", train_images, seed)
    test = compose_images("val", val_images, seed)
    model = Finder(nnx.Rngs(seed))
    _report("untrained", overlaps(model, test))
    start = time.perf_counter()
    with trange(steps, desc="training", unit=" steps", disable=None) as bar:
        train(model, learn, steps, batch_size, learning_rate, seed, lambda loss: bar.update())
    print(f"trained {steps} steps in {time.perf_counter() - start:.0f} s")
    _report("trained", overlaps(model, test))
    shown = Images(*(array[:_SHOWN] for array in test))
    draw_looks(model, shown, output / "attention.png")
    print(f"Wrote {output / 'attention.png'}.")


def _report(name: str, found: list[float]) -> None:
    layers = ", ".join(f"{value:.2f} after layer {index + 1}" for index, value in enumerate(found))
    print(f"{name}: mean overlap of box and digit {layers}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example and returns the exit code."""
    return in_words(
        lambda: tyro.cli(find_digits, prog="python -m examples.attention", args=arguments)
    )


if __name__ == "__main__":
    sys.exit(main())
