# SPDX-License-Identifier: MIT
"""Columns of a deformable convolution: the chunks that hold them, and their matrix products.

Columns are `[feature groups, images, pixels, taps, C // feature groups]`: the samples that output
pixels multiply with the kernel. For several stacked kernels, the taps of all kernels are listed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.operator.chunks import chunk_bytes
from jax_dcn._src.sampling.bins import bin_words


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunks that hold columns: each holds some images, or a part of one image.

    Attributes:
      images, pixels: Images of a chunk, and output pixels of each image. The last chunk may reach
        beyond the last image or pixel; columns beyond are zero.
      batch, size: The number of images, and the size `(Ho, Wo)` of their outputs.
      columns: Type of the columns of a chunk.
      gather_words: Scratch memory that the gradient of x takes, in 4-byte words.
    """

    images: int
    pixels: int
    batch: int
    size: tuple[int, int]
    columns: Any
    gather_words: int

    @staticmethod
    def of(
        x: jax.Array, kernel: jax.Array, offset: jax.Array, feature_groups: int, gathers: bool
    ) -> "Chunks":
        """The chunks for `x`, `kernel` and `offset`; `gathers` if the gradient of x is asked for."""
        batch, height, width, groups, _, _ = offset.shape
        taps, channels = math.prod(kernel.shape[:2]), x.shape[-1]
        samples, bins = taps * groups, groups * math.prod(x.shape[1:3])
        pixel_bytes = taps * channels * x.dtype.itemsize
        image_bytes = 0
        if gathers:
            pixel_bytes += 4 * bin_words(samples, 0, offset.dtype)
            image_bytes = 4 * bin_words(0, bins, offset.dtype)
        images, pixels = _sizes(batch, height * width, image_bytes, pixel_bytes)
        columns = (feature_groups, images, pixels, taps, channels // feature_groups)
        words = bin_words(images * pixels * samples, images * bins, offset.dtype)
        return Chunks(
            images, pixels, batch, (height, width), jax.typeof(x).update(shape=columns), words
        )

    @property
    def splits_images(self) -> bool:
        return self.pixels < math.prod(self.size)

    def whole(self) -> "Chunks":
        """All images as one chunk."""
        return dataclasses.replace(self, images=self.batch, pixels=math.prod(self.size))

    def starts(self) -> np.ndarray:
        """First image and first pixel of each chunk, `[chunks, 2]`."""
        starts = [
            (image, pixel)
            for image in range(0, self.batch, self.images)
            for pixel in range(0, math.prod(self.size), self.pixels)
        ]
        return np.array(starts, np.int32)

    def map(self, f: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Maps `f` over the starts; chunks `[images, pixels, O]` become `[N, Ho, Wo, O]`."""
        starts = self.starts()
        if len(starts) == 1:
            return f(jnp.asarray(starts[0])).reshape(self.batch, *self.size, -1)
        y = jax.lax.map(f, jnp.asarray(starts)).reshape(*self._padded(), -1)
        return y[: self.batch, : math.prod(self.size)].reshape(self.batch, *self.size, -1)

    def split(self, y: jax.Array) -> jax.Array:
        """Splits `[N, Ho, Wo, O]` into chunks `[chunks, images, pixels, O]`, padded with zeros."""
        y = y.reshape(self.batch, math.prod(self.size), -1)
        rest = [(0, padded - n) for padded, n in zip(self._padded(), y.shape, strict=False)]
        if any(after for _, after in rest):
            y = jnp.pad(y, (*rest, (0, 0)))
        return y.reshape(-1, self.images, self.pixels, y.shape[-1])

    def _padded(self) -> tuple[int, int]:
        """Images and pixels that the chunks cover."""
        images = -(-self.batch // self.images) * self.images
        return images, -(-math.prod(self.size) // self.pixels) * self.pixels


def _sizes(batch: int, pixels: int, image_bytes: int, pixel_bytes: int) -> tuple[int, int]:
    """Images of a chunk, and pixels of each: chunks of equal size, as few as possible."""
    whole, most_bytes = image_bytes + pixels * pixel_bytes, chunk_bytes()
    if whole <= most_bytes:
        chunks = -(-batch // (most_bytes // whole))
        return -(-batch // chunks), pixels
    most = max(1, (most_bytes - image_bytes) // pixel_bytes)
    chunks = -(-pixels // most)
    return 1, -(-pixels // chunks)


# --------------------------------------------------------------------------------------- products

# One feature group makes one product, more make a batch of them.


def times_kernel(columns: jax.Array, kernel: jax.Array, **options) -> jax.Array:
    """Columns · kernel: `[images, pixels, O]`."""
    groups, images, pixels, _, _ = columns.shape
    y = _product("gpd,dgo->pgo", groups, _matrix(columns), _by_group(kernel, groups), **options)
    return y.reshape(images, pixels, -1)


def times_kernel_transposed(
    grad_y: jax.Array, kernel: jax.Array, columns: Any, **options
) -> jax.Array:
    """`grad_y [images, pixels, O]` · kernelᵀ, of the type `columns`."""
    groups = columns.shape[0]
    operands = _by_group(grad_y, groups), _by_group(kernel, groups)
    grad_columns = _product("pgo,dgo->gpd", groups, *operands, dtype=columns.dtype, **options)
    return grad_columns.reshape(columns.shape)


def transposed_times(columns: jax.Array, grad_y: jax.Array, **options) -> jax.Array:
    """Columnsᵀ · `grad_y [images, pixels, O]`: `[taps * C // groups, O]`."""
    groups, features = columns.shape[0], grad_y.shape[-1]
    operands = _matrix(columns), _by_group(grad_y, groups)
    return _product("gpd,pgo->dgo", groups, *operands, **options).reshape(-1, features)


def _product(equation: str, groups: int, left, right, *, dtype, precision) -> jax.Array:
    if groups == 1:
        equation = equation.replace("g", "")
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=dtype)


def _matrix(columns: jax.Array) -> jax.Array:
    """`[(groups,) pixels, depth]`."""
    groups, images, pixels, taps, channels = columns.shape
    return columns.reshape(*_group_axis(groups), images * pixels, taps * channels)


def _by_group(array: jax.Array, groups: int) -> jax.Array:
    """`[..., O]` as `[rows, (groups,) features of a group]`."""
    rows, features = math.prod(array.shape[:-1]), array.shape[-1]
    return array.reshape(rows, *_group_axis(groups), features // groups)


def _group_axis(groups: int) -> tuple[int, ...]:
    return () if groups == 1 else (groups,)
