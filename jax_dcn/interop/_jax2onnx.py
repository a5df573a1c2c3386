# SPDX-License-Identifier: MIT
"""Plugins of jax2onnx: ONNX nodes for the primitives of this library, and for pooling in NHWC."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.extend.core
import numpy as np
import onnx_ir as ir
from jax2onnx.plugins import plugin_system
from jax2onnx.plugins.jax.core import jit

Shape = Sequence[Any]
"""Sizes of axes, of which some may be symbolic."""

_CHANNELS_FIRST, _CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


class DeformConv(plugin_system.PrimitiveLeafPlugin):
    """`deform_conv2d` as a DeformConv node."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Appends the node that computes `eqn` to the graph of `ctx`."""
        geometry = eqn.params["geometry"]
        if geometry.boundary != "padded":
            raise NotImplementedError(
                f"ONNX has no DeformConv with boundary={geometry.boundary!r}, only with 'padded'."
            )
        x, kernel, offset, mask, bias = map(ctx.get_value_for_var, eqn.invars)
        image, kernel_shape, samples, masks, _ = (var.aval.shape for var in eqn.invars)
        batch = len(image) - 3
        operands = [
            _channels_first(ctx, x, image, batch, image[-1]),
            _transpose(ctx, kernel, (3, 2, 0, 1)),
            _channels_first(
                ctx, _cast(ctx, offset, x.dtype), samples, batch, _product(samples[-3:])
            ),
            bias,
        ]
        if masks[-1]:  # A mask without taps is no mask.
            mask = _cast(ctx, mask, x.dtype)
            operands.append(_channels_first(ctx, mask, masks, batch, _product(masks[-2:])))
        y = _node(
            ctx,
            "DeformConv",
            *operands,
            dtype=x.dtype,
            kernel_shape=kernel_shape[:2],
            strides=geometry.strides,
            pads=_pads(geometry.padding),
            dilations=geometry.kernel_dilation,
            group=geometry.feature_group_count,
            offset_group=samples[-3],
        )
        y = _transpose(ctx, y, _CHANNELS_LAST)
        if batch != 1:
            size = _sizes(ctx, offset, samples, range(batch + 2))
            y = _reshape(ctx, y, [*size, kernel_shape[3]])
        _bind(ctx, eqn, y)


class MaxPool(plugin_system.PrimitiveLeafPlugin):
    """`reduce_window_max` over height and width; jax2onnx pools all four axes, which runs nowhere."""

    general: plugin_system.PrimitiveLeafPlugin

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Appends the node that computes `eqn` to the graph of `ctx`."""
        window, params = eqn.params["window_dimensions"], eqn.params
        if (
            len(window) != 4
            or window[0] != 1
            or window[3] != 1
            or set(params["base_dilation"]) != {1}
        ):
            return self.general.lower(ctx, eqn)
        x = ctx.get_value_for_var(eqn.invars[0])
        y = _node(
            ctx,
            "MaxPool",
            _transpose(ctx, x, _CHANNELS_FIRST),
            dtype=x.dtype,
            kernel_shape=window[1:3],
            strides=params["window_strides"][1:3],
            pads=_pads(params["padding"][1:3]),
            dilations=params["window_dilation"][1:3],
        )
        _bind(ctx, eqn, _transpose(ctx, y, _CHANNELS_LAST))


@functools.cache
def register() -> None:
    """Adds the plugins to jax2onnx."""
    plugin_system.import_all_plugins()
    # jax2onnx 0.17 takes a name from `jax.core` that JAX 0.12 has in `jax.extend.core` only.
    jit.jcore = jax.extend.core
    MaxPool.general = plugin_system.PLUGIN_REGISTRY["reduce_window_max"]
    for primitive, plugin in (("deform_conv2d", DeformConv), ("reduce_window_max", MaxPool)):
        plugin_system.register_primitive(jaxpr_primitive=primitive)(plugin)


def _node(ctx: Any, name: str, *operands: Any, dtype: Any, **attributes: Any) -> Any:
    listed = {k: list(v) if isinstance(v, Sequence) else v for k, v in attributes.items()}
    value = getattr(ctx.builder, name)(*operands, _outputs=[ctx.fresh_name(name)], **listed)
    value.dtype = dtype
    return value


def _transpose(ctx: Any, value: Any, axes: Sequence[int]) -> Any:
    return _node(ctx, "Transpose", value, dtype=value.dtype, perm=axes)


def _cast(ctx: Any, value: Any, dtype: Any) -> Any:
    """`value` in `dtype`: all operands of a node have one dtype."""
    return value if value.dtype == dtype else _node(ctx, "Cast", value, dtype=dtype, to=dtype)


def _channels_first(ctx: Any, value: Any, shape: Shape, batch: int, channels: int) -> Any:
    """`[*batch, H, W, ...]` to `[N, channels, H, W]`."""
    if batch != 1:
        size = _sizes(ctx, value, shape, range(batch, batch + 2))
        value = _reshape(ctx, value, [-1, *size, channels])
    elif len(shape) > 4:  # ONNX reads 0 as the size of the same axis before.
        value = _reshape(ctx, value, [0, 0, 0, channels])
    return _transpose(ctx, value, _CHANNELS_FIRST)


def _sizes(ctx: Any, value: Any, shape: Shape, axes: range) -> list[Any]:
    """Sizes of neighbouring axes of `value`: integers, or one value that holds all of them."""
    sizes = [shape[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        return sizes
    return [_node(ctx, "Shape", value, dtype=ir.DataType.INT64, start=axes.start, end=axes.stop)]


def _reshape(ctx: Any, value: Any, sizes: Sequence[Any]) -> Any:
    """`value` with these sizes, each of them an integer or a value that holds several."""
    if all(isinstance(size, int) for size in sizes):
        target = _integers(ctx, *sizes)
    else:
        parts = [_integers(ctx, size) if isinstance(size, int) else size for size in sizes]
        target = _node(ctx, "Concat", *parts, dtype=ir.DataType.INT64, axis=0)
    return _node(ctx, "Reshape", value, target, dtype=value.dtype)


def _integers(ctx: Any, *values: int) -> Any:
    return ctx.bind_const_for_var(object(), np.array(values, np.int64))


def _product(sizes: Shape) -> int:
    return int(np.prod(sizes))


def _pads(pairs: Sequence[Sequence[int]]) -> list[int]:
    """ONNX lists the pads of all axes' beginnings, then those of their ends."""
    return [pad for ends in zip(*pairs, strict=True) for pad in ends]


def _bind(ctx: Any, eqn: Any, value: Any) -> None:
    value.shape = ctx.get_value_for_var(eqn.outvars[0]).shape
    ctx.bind_value_for_var(eqn.outvars[0], value)
