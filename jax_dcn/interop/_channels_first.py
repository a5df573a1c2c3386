# SPDX-License-Identifier: MIT
"""Deformable convolution of channels-first arrays, with errors in the caller's names and axes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src import arguments
from jax_dcn._src.arguments import is_integer, is_sequence
from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.sampling.window import is_empty

_AXES = {
    "input": "[N, C, H, W]",
    "offset": "[N, 2 * G * kh * kw, Ho, Wo]",
    "weight": "[O, C // groups, kh, kw]",
    "bias": "[O]",
    "mask": "[N, G * kh * kw, Ho, Wo]",
}


@dataclasses.dataclass(frozen=True)
class ChannelsFirst:
    """The arrays of one call, under the caller's names.

    Attributes:
      names: The caller's names of the five arrays, in the order of the fields below.
      input, offset, weight, bias, mask: The arrays, with the axes in `_AXES`.
    """

    names: tuple[str, str, str, str, str]
    input: jax.Array
    offset: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None

    @staticmethod
    def of(names: tuple[str, str, str, str, str], *values: Any) -> "ChannelsFirst":
        """The arrays of a call, from values that become arrays.

        Raises:
          ValueError: for wrong ranks and dtypes.
        """
        arrays: dict[str, Any] = {}
        for name, value, (field, axes) in zip(names, values, _AXES.items(), strict=True):
            is_absent = value is None and field in ("bias", "mask")
            arrays[field] = None if is_absent else _array(name, value, axes)
        for name, field in ((names[2], "weight"), (names[3], "bias")):
            array, expected = arrays[field], arrays["input"].dtype
            if array is not None and array.dtype != expected:
                raise ValueError(
                    f"{name} must have the dtype of {names[0]}: expected {expected}, got "
                    f"{array.dtype}."
                )
        return ChannelsFirst(names, **arrays)

    def convolve(
        self,
        strides: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
        dilation: tuple[int, int],
    ) -> jax.Array:
        """The result, `[N, O, Ho, Wo]`."""
        groups = self._groups()
        self._check_samples(ConvGeometry(strides, padding, dilation, groups))
        mask = None if self.mask is None else self._by_tap(self.mask, ())
        y = deform_conv2d(
            jnp.moveaxis(self.input, 1, -1),
            jnp.transpose(self.weight, (2, 3, 1, 0)),
            self._by_tap(self.offset, (2,)),
            mask,
            self.bias,
            strides=strides,
            padding=padding,
            kernel_dilation=dilation,
            feature_group_count=groups,
        )
        return jnp.moveaxis(y, -1, 1)

    def _groups(self) -> int:
        """The number of groups, from the channels of the input and of the weight."""
        input_name, _, name, bias_name, _ = self.names
        channels, shape = self.input.shape[1], self.weight.shape
        if 0 in shape or channels == 0 or channels % shape[1]:
            raise ValueError(
                f"{name} must be [O, C // groups, kh, kw] for {channels} channels of {input_name}, "
                f"got shape {shape}."
            )
        groups: int = channels // shape[1]
        if shape[0] % groups:
            raise ValueError(
                f"{name} has {shape[0]} output channels, which its {groups} groups must divide: "
                f"{input_name} has {channels} channels and {name} has shape {shape}."
            )
        if self.bias is not None and self.bias.shape != shape[:1]:
            raise ValueError(
                f"{bias_name} must be [O]: expected {shape[:1]}, got {self.bias.shape}."
            )
        return groups

    def _check_samples(self, geometry: ConvGeometry) -> None:
        """The shapes of offset and mask."""
        input_name, offset_name, weight_name, _, mask_name = self.names
        (batch, channels, *image), kernel = self.input.shape, self.weight.shape[2:]
        if is_empty(image):
            raise ValueError(f"{input_name} must have pixels, got shape {self.input.shape}.")
        size = geometry.output_size(image, kernel)
        if is_empty(size):
            raise ValueError(
                f"{input_name} of shape {self.input.shape} is smaller than the kernel of "
                f"{weight_name} of shape {self.weight.shape}: there are {size[0]}x{size[1]} output "
                "positions."
            )
        taps = int(np.prod(kernel))
        groups = _offset_groups(offset_name, self.offset, 2 * taps, taps)
        if channels % groups:
            raise ValueError(
                f"{offset_name} has {groups} offset groups, which must divide the {channels} "
                f"channels of {input_name}."
            )
        expected = (batch, 2 * groups * taps, *size)
        _check_shape(offset_name, self.offset, expected, f"{input_name} and {weight_name}")
        if self.mask is not None:
            _offset_groups(mask_name, self.mask, taps, taps)
            owner = f"{offset_name}, which has {groups} offset groups"
            _check_shape(mask_name, self.mask, (batch, groups * taps, *size), owner)

    def _by_tap(self, array: jax.Array, components: tuple[int, ...]) -> jax.Array:
        """`[N, G * K * components, Ho, Wo]` to `[N, Ho, Wo, G, K, *components]`."""
        batch, channels, *size = array.shape
        taps = int(np.prod(self.weight.shape[2:]))
        groups = channels // (taps * int(np.prod(components)))
        return jnp.moveaxis(array, 1, -1).reshape(batch, *size, groups, taps, *components)


def _array(name: str, value: Any, axes: str) -> jax.Array:
    """The argument `name` as an array of floating point with these axes."""
    array, rank = arguments.array(name, value, axes), len(axes.split(","))
    if array.ndim != rank:
        expected = "1 axis" if rank == 1 else f"{rank} axes"
        raise ValueError(f"{name} must have {expected}, {axes}, got shape {array.shape}.")
    return array


def _check_shape(name: str, array: Any, expected: tuple[Any, ...], owner: str) -> None:
    if not fits(array.shape, expected):
        raise ValueError(f"{name} does not fit {owner}: expected {expected}, got {array.shape}.")


def _offset_groups(name: str, array: Any, step: int, taps: int) -> int:
    """The number of offset groups in the channels of an array."""
    channels: int = array.shape[1]
    if not channels or channels % step:
        raise ValueError(
            f"{name} must have a multiple of {step} channels for a kernel of {taps} taps, "
            f"got shape {array.shape}."
        )
    return channels // step


def integers(name: str, values: Any, count: int, *, least: int) -> tuple[int, ...]:
    """The option `name` as `count` integers from `least` to 2**31 - 1, from integers or an array.

    Raises:
      ValueError: for anything else.
    """
    is_valid = is_sequence(values) and len(values) == count
    if not is_valid or not all(is_integer(v) and least <= v < arguments.LIMIT for v in values):
        raise ValueError(
            f"{name} must be {count} integers from {least} to 2**31 - 1, got {values!r}."
        )
    return tuple(map(int, values))
