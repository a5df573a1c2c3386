# SPDX-License-Identifier: MIT
"""Times the implementations on this machine's first device, in about a minute."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.operator.implementation import platform_of

# The 3x3 convolutions of a ResNet-50's last three stages for images of 224x224: size, channels.
_LAYERS = ((28, 128), (14, 256), (7, 512))
_BATCH = 8
_SECONDS = 2.0  # of measurement, for each number


def benchmark() -> None:
    """Prints milliseconds of deformable and ordinary convolution, without and with gradients."""
    print(f"{jax.devices()[0]} ({platform_of(jax.devices()[0])}), float32, batch {_BATCH}; ms")
    print(f"{'layer':16}" + "".join(f"{name:>24}" for name in _functions()))
    for size, channels in _LAYERS:
        arrays = _arrays(size, channels)
        cells = [
            f"{_milliseconds(f, arrays):.2f} / {_milliseconds(_gradients(f), arrays):.2f}"
            for f in _functions().values()
        ]
        print(f"{f'{size}x{size}x{channels}':16}" + "".join(f"{cell:>24}" for cell in cells))
    print("Each cell: forward / forward and all gradients.")


def _functions() -> dict[str, Callable[..., jax.Array]]:
    def ordinary(
        x: jax.Array, kernel: jax.Array, offset: jax.Array, mask: jax.Array, bias: jax.Array
    ) -> jax.Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        return y + bias

    return {
        "deformable": deform_conv2d,
        "deformable, xla": lambda *arrays: deform_conv2d(*arrays, implementation="xla"),
        "ordinary": ordinary,
    }


def _gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda *arrays: (f(*arrays) ** 2).sum(), tuple(range(5)))


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


def _milliseconds(f: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> float:
    """Median time of one call, transfers and compilation excluded."""
    compiled = jax.jit(f)
    jax.block_until_ready(compiled(*arrays))
    times: list[float] = []
    while sum(times) < _SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
