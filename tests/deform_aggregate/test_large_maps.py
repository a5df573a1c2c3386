# SPDX-License-Identifier: MIT
"""Maps of more than 2**24 pixels along an axis, where float32 skips whole numbers."""

import jax
import jax.numpy as jnp

from jax_dcn import deform_aggregate

WIDTH = 2**24 + 3


def test_last_pixel_of_a_map_has_no_next_one(implementation):
    # The first pixel of the map behind the last pixel of the other.
    x = jnp.zeros((1, 2 * WIDTH, 1), jnp.float32).at[:, WIDTH].set(jnp.nan)
    positions = jnp.array([0.0, 2.0**24 + 2], jnp.float32).reshape(1, 1, 1, 1, 2)
    positions = jnp.concatenate([positions, jnp.zeros_like(positions).at[..., 1].set(7)], axis=3)
    weights = jnp.ones((1, 1, 1, 2), jnp.float32)

    def aggregate(x):
        shapes, points = ((1, WIDTH),) * 2, (1, 1)
        return deform_aggregate(
            x, positions, weights, shapes=shapes, points=points, implementation=implementation
        ).sum()

    value, grad = jax.jit(jax.value_and_grad(aggregate))(x)
    assert value == 0
    assert grad[0, WIDTH - 1, 0] == 1 and grad[0, WIDTH, 0] == 0 and grad.sum() == 2
