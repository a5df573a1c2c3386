# SPDX-License-Identifier: MIT
"""Pools a box of a photograph, and a misplaced copy of it whose bins learn to reach the first.

`python -m examples.roi_pool` prints how far the pooled colours are apart, before and after, and draws
the boxes with the positions that their bins sample.
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_sample_image

import jax_dcn
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of gradient descent")
    parser.add_argument("--output", type=pathlib.Path, default="roi_pool.png", help="the picture")
    options = parser.parse_args(arguments)

    photograph = load_sample_image("flower.jpg")
    x = features(photograph)
    target, before = pool(x, region(BOX)), pool(x, region(MISPLACED))
    offset = fit_offset(x, region(MISPLACED), target, options.steps)
    after = displaced_pool(x, region(MISPLACED), offset)
    for name, pooled in {"undisplaced": before, "displaced": after}.items():
        print(
            f"{name} bins: colours differ by {float(jnp.sqrt(jnp.mean((pooled - target) ** 2))):.3f}"
        )

    figure, axes = plt.subplots(2, 3, figsize=(10.5, 5.6), layout="constrained")
    rows = zip(
        axes.T,
        ("a box", "misplaced", "misplaced, bins displaced"),
        ((BOX, None, target), (MISPLACED, None, before), (MISPLACED, offset, after)),
        strict=True,
    )
    for (above, below), title, (box, displacement, pooled) in rows:
        draw_box(above, photograph, box, displacement, BINS, TRANS_STD)
        above.set_title(title, fontsize=10)
        draw_pooled(below, pooled[0])
    figure.savefig(options.output, dpi=80)
    plt.close(figure)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
