# SPDX-License-Identifier: MIT
"""The layers on which deformable and ordinary convolution are timed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.operator.problem import Benchmark

# The 3x3 convolutions of a ResNet-50's last three stages for images of 224x224: size, channels.
_LAYERS = ((28, 128), (14, 256), (7, 512))
_BATCH = 8


def _ordinary(
    x: jax.Array, kernel: jax.Array, offset: jax.Array, mask: jax.Array, bias: jax.Array
) -> jax.Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    return y + bias


def _arrays(size: int, channels: int) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    shapes = (
        (_BATCH, size, size, channels),
        (3, 3, channels, channels),
        (_BATCH, size, size, 1, 9, 2),
        (_BATCH, size, size, 1, 9),
        (channels,),
    )
    return tuple(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)


BENCHMARK = Benchmark(
    f"float32, batch {_BATCH}",
    {
        "deformable": deform_conv2d,
        "deformable, xla": functools.partial(deform_conv2d, implementation="xla"),
        "ordinary": _ordinary,
    },
    {
        f"{size}x{size}x{channels}": functools.partial(_arrays, size, channels)
        for size, channels in _LAYERS
    },
)
