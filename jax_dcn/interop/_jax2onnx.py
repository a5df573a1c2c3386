# SPDX-License-Identifier: MIT
"""What JAX's primitives are in ONNX, told to jax2onnx: ours, and pooling as models in NHWC have it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.extend.core
import numpy as np
from jax2onnx.plugins import plugin_system
from jax2onnx.plugins.jax.core import jit

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
        kernel_size, samples = eqn.invars[1].aval.shape[:2], eqn.invars[2].aval.shape
        operands = [
            _transpose(ctx, x, _CHANNELS_FIRST),
            _transpose(ctx, kernel, (3, 2, 0, 1)),
            _samples_channels_first(ctx, offset, samples, x.dtype),
            bias,
        ]
        if eqn.invars[3].aval.shape[-1]:  # without taps, there is no mask
            operands.append(_samples_channels_first(ctx, mask, samples[:-1], x.dtype))
        y = _node(
            ctx,
            "DeformConv",
            *operands,
            dtype=x.dtype,
            kernel_shape=kernel_size,
            strides=geometry.strides,
            pads=_pads(geometry.padding),
            dilations=geometry.kernel_dilation,
            group=geometry.feature_group_count,
            offset_group=samples[3],
        )
        _bind(ctx, eqn, _transpose(ctx, y, _CHANNELS_LAST))


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
    """Adds these to what jax2onnx knows."""
    plugin_system.import_all_plugins()
    # jax2onnx 0.17 looks there for a name that JAX 0.12 has in public only.
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


def _samples_channels_first(ctx: Any, value: Any, shape: Sequence[Any], dtype: Any) -> Any:
    """`[N, Ho, Wo, ...]` to `[N, channels, Ho, Wo]`, in the one dtype that a node reads."""
    if value.dtype != dtype:
        value = _node(ctx, "Cast", value, dtype=dtype, to=dtype)
    # 0 keeps the batch, which may be a free size.
    target = np.array([0, *shape[1:3], np.prod(shape[3:])], np.int64)
    value = _node(ctx, "Reshape", value, ctx.bind_const_for_var(object(), target), dtype=dtype)
    return _transpose(ctx, value, _CHANNELS_FIRST)


def _pads(pairs: Sequence[Sequence[int]]) -> list[int]:
    """ONNX lists the pads of all axes' beginnings, then those of their ends."""
    return [pad for ends in zip(*pairs, strict=True) for pad in ends]


def _bind(ctx: Any, eqn: Any, value: Any) -> None:
    value.shape = ctx.get_value_for_var(eqn.outvars[0]).shape
    ctx.bind_value_for_var(eqn.outvars[0], value)
