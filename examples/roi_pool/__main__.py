# SPDX-License-Identifier: MIT
"""Command line: `python -m examples.roi_pool --help`."""

import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from sklearn.datasets import load_sample_image

import jax_dcn
from examples.imagenet.command_line import in_words
from examples.imagenet.errors import PICTURES, check_option, check_suffix
from examples.roi_pool.draw import draw_box, draw_pooled

SCALE = 1 / 4  # the features are the photograph, shrunk as by the first layers of a detector
BINS = 7
TRANS_STD = 0.1
# x1, y1, x2, y2: the flower, and a box that a bad proposal could be.
BOX = (172, 84, 452, 350)
MISPLACED = (202, 54, 482, 320)

pool = functools.partial(
    jax_dcn.deform_roi_pool,
    spatial_scale=SCALE,
    pooled_size=BINS,
    output_dim=3,
)
displaced_pool = functools.partial(pool, trans_std=TRANS_STD)


def features(photograph: np.ndarray) -> jax.Array:
    """Mean colours of squares of pixels, `[1, H, W, 3]`."""
    step = round(1 / SCALE)
    height, width = (size // step for size in photograph.shape[:2])
    squares = photograph[: height * step, : width * step] / np.float32(255)
    return jnp.asarray(squares.reshape(height, step, width, step, 3).mean((1, 3))[None])


def region(box: Sequence[int]) -> jax.Array:
    return jnp.asarray([[0, *box]], jnp.float32)


def fit_offset(x: jax.Array, roi: jax.Array, target: jax.Array, steps: int) -> jax.Array:
    """Moves the bins of `roi` until what they pool is `target`, by gradient descent."""

    def loss(offset: jax.Array) -> jax.Array:
        # A little friction: of the offsets that do, the smallest.
        return jnp.mean((displaced_pool(x, roi, offset) - target) ** 2) + 1e-4 * jnp.mean(offset**2)

    optimizer = optax.adam(0.05)

    def step(state, _):
        offset, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(offset), moments)
        return (optax.apply_updates(offset, updates), moments), None

    @jax.jit
    def run(offset: jax.Array) -> jax.Array:
        return jax.lax.scan(step, (offset, optimizer.init(offset)), length=steps)[0][0]

    # Not quite zero: at whole pixels the derivative is zero.
    return run(jnp.full((1, BINS, BINS, 1, 2), 1e-3))


def find_box(*, steps: int = 300, output: pathlib.Path = pathlib.Path("roi_pool.png")) -> None:
    """Pools a box of a photograph, and a misplaced copy whose bins learn to reach the first box.

    Prints how far the pooled colours are apart, before and after, and draws the boxes with the
    positions that their bins sample.

    Args:
      steps: Steps of gradient descent.
      output: The picture.
    """
    check_option("steps", steps, 0)
    check_suffix(output, PICTURES)
    output.parent.mkdir(parents=True, exist_ok=True)
    photograph = load_sample_image("flower.jpg")
    x = features(photograph)
    target, before = pool(x, region(BOX)), pool(x, region(MISPLACED))
    offset = fit_offset(x, region(MISPLACED), target, steps)
    after = displaced_pool(x, region(MISPLACED), offset)
    for name, pooled in {"undisplaced": before, "displaced": after}.items():
        difference = float(jnp.sqrt(jnp.mean((pooled - target) ** 2)))
        print(f"{name} bins: colours differ by {difference:.3f}")
    columns = {
        "a box": (BOX, None, target),
        "misplaced": (MISPLACED, None, before),
        "misplaced, bins displaced": (MISPLACED, offset, after),
    }
    draw(photograph, columns, output)
    print(f"Wrote {output}.")


def draw(photograph: np.ndarray, columns: dict[str, tuple], output: pathlib.Path) -> None:
    """Draws a box with its offset, and what its bins pool, in each column."""
    figure, axes = plt.subplots(2, len(columns), figsize=(10.5, 5.6), layout="constrained")
    for (above, below), (title, column) in zip(axes.T, columns.items(), strict=True):
        box, offset, pooled = column
        draw_box(above, photograph, box, offset, BINS, TRANS_STD)
        above.set_title(title, fontsize=10)
        draw_pooled(below, pooled[0])
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example and returns the exit code."""
    return in_words(lambda: tyro.cli(find_box, prog="python -m examples.roi_pool", args=arguments))


if __name__ == "__main__":
    sys.exit(main())
