# SPDX-License-Identifier: MIT
"""Plugins of jax2onnx: ONNX nodes for the primitives of this library, and for pooling in NHWC."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.extend.core
import numpy as np
import onnx_ir as ir
from jax2onnx.plugins import _axis0_utils, plugin_system
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
        image, kernel_shape, samples, _, _ = (var.aval.shape for var in eqn.invars)
        batch = len(image) - 3
        operands = self._operands(ctx, eqn, batch)
        y = _node(
            ctx,
            "DeformConv",
            *operands,
            dtype=operands[0].dtype,
            kernel_shape=kernel_shape[:2],
            strides=geometry.strides,
            pads=_pads(geometry.padding),
            dilations=geometry.kernel_dilation,
            group=geometry.feature_group_count,
            offset_group=samples[-3],
        )
        y = _channels_last(ctx, eqn, y)
        if batch != 1:
            y = _reshape(ctx, y, [*_axes(ctx, eqn.invars[2], 0, batch + 2), kernel_shape[3]])
        _bind(ctx, eqn, y)

    def _operands(self, ctx: Any, eqn: Any, batch: int) -> list[Any]:
        """The inputs of the node: X, W, offset, B and, where there is a mask, mask."""
        x, kernel, offset, mask, bias = map(ctx.get_value_for_var, eqn.invars)
        image, _, samples, masks, _ = (var.aval.shape for var in eqn.invars)
        offset, mask = (_cast(ctx, value, x.dtype) for value in (offset, mask))
        operands = [
            _channels_first(ctx, x, image, batch, image[-1]),
            _transpose(ctx, kernel, (3, 2, 0, 1)),
            _channels_first(ctx, offset, samples, batch, _product(samples[-3:])),
            bias,
        ]
        if masks[-1]:  # A mask without taps is no mask.
            operands.append(_channels_first(ctx, mask, masks, batch, _product(masks[-2:])))
        return operands


class DeformAggregate(plugin_system.PrimitiveLeafPlugin):
    """`deform_aggregate` as a GridSample node for each map, and the weighted sums of its samples."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Appends the nodes that compute `eqn` to the graph of `ctx`."""
        geometry, (x, positions, weights) = eqn.params["geometry"], eqn.invars
        _check_maps(geometry)
        batch, channels = len(x.aval.shape) - 2, x.aval.shape[-1]
        queries = _axes(ctx, positions, batch, batch + 1)
        images = _transpose(ctx, _one_batch_axis(ctx, x, batch), (0, 2, 1))
        places = _transpose(ctx, _one_batch_axis(ctx, positions, batch), (0, 2, 1, 3, 4))
        factors = None
        if weights.aval.shape[-1]:  # Weights without samples are no weights.
            factors = _transpose(ctx, _one_batch_axis(ctx, weights, batch), (0, 2, 1, 3))
            factors = _cast(ctx, factors, images.dtype)
        sums, pixel, sample = [], 0, 0
        # The axes [N, groups] are one batch axis of GridSample.
        for (height, width), points in zip(geometry.shapes, geometry.points, strict=True):
            if not points:  # A GridSample node without samples cannot be loaded.
                pixel += height * width
                continue
            image = _slice(ctx, images, pixel, height * width, axis=2)
            image = _reshape(ctx, image, [-1, channels // positions.aval.shape[-3], height, width])
            grid = _slice(ctx, places, sample, points, axis=3)
            grid = _grid(ctx, grid, (height, width), geometry.unit_square)
            factor = None if factors is None else _slice(ctx, factors, sample, points, axis=3)
            values = _grid_sample(
                ctx, image, _reshape(ctx, grid, [-1, *queries, points, 2]), geometry.whole_positions
            )
            sums.append(_sum_of_samples(ctx, values, factor, [*queries, points]))
            pixel, sample = pixel + height * width, sample + points
        if not sums:
            raise NotImplementedError("positions have no samples: ONNX has no node for this.")
        y = functools.reduce(lambda a, b: _node(ctx, "Add", a, b, dtype=a.dtype), sums)
        y = _transpose(ctx, _reshape(ctx, y, [-1, channels, *queries]), (0, 2, 1))
        if batch != 1:
            y = _reshape(ctx, y, [*_axes(ctx, x, 0, batch), *queries, channels])
        _bind(ctx, eqn, y)


class RoIAlign(plugin_system.PrimitiveLeafPlugin):
    """`deform_roi_pool` as a RoiAlign node, where the primitive is no more than RoIAlign."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Appends the nodes that compute `eqn` to the graph of `ctx`."""
        geometry, (x, rois, offset, mask) = eqn.params["geometry"], eqn.invars
        _check_regions(geometry, offset.aval.shape[1], mask.aval.shape[1])
        image, regions = ctx.get_value_for_var(x), ctx.get_value_for_var(rois)
        indices = _reshape(ctx, _slice(ctx, regions, 0, 1, axis=1), [-1])
        y = _node(
            ctx,
            "RoiAlign",
            _transpose(ctx, _cast(ctx, image, regions.dtype), _CHANNELS_FIRST),
            _slice(ctx, regions, 1, 4, axis=1),
            _cast(ctx, indices, ir.DataType.INT64),
            dtype=regions.dtype,
            output_height=geometry.pooled_size[0],
            output_width=geometry.pooled_size[1],
            sampling_ratio=geometry.samples,
            spatial_scale=geometry.spatial_scale,
            coordinate_transformation_mode="half_pixel",
        )
        _bind(ctx, eqn, _cast(ctx, _channels_last(ctx, eqn, y), image.dtype))


class Stack(plugin_system.PrimitiveLeafPlugin):
    """`stack` of newer JAX, which older versions of jax2onnx do not have."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Appends the nodes that compute `eqn` to the graph of `ctx`."""
        axis = eqn.params["axis"]
        values = [ctx.get_value_for_var(var) for var in eqn.invars]
        longer = [
            _node(ctx, "Unsqueeze", value, _integers(ctx, axis), dtype=value.dtype)
            for value in values
        ]
        _bind(ctx, eqn, _node(ctx, "Concat", *longer, dtype=values[0].dtype, axis=axis))


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
        _bind(ctx, eqn, _channels_last(ctx, eqn, y))


class Name(plugin_system.PrimitiveLeafPlugin):
    """`name` as no node: shapes after the Identity node of jax2onnx are wrong without a batch axis."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Binds the result of `eqn` to its operand."""
        ctx.bind_value_for_var(eqn.outvars[0], ctx.get_value_for_var(eqn.invars[0]))


@functools.cache
def register() -> None:
    """Adds the plugins to jax2onnx."""
    plugin_system.import_all_plugins()
    # jax2onnx 0.17 takes a name from `jax.core` that JAX 0.12 has in `jax.extend.core` only.
    jit.jcore = jax.extend.core
    _axis0_utils.ensure_axis0_extent = _except_rows(_axis0_utils.ensure_axis0_extent)
    MaxPool.general = plugin_system.PLUGIN_REGISTRY["reduce_window_max"]
    plugins = {
        "deform_conv2d": DeformConv,
        "deform_aggregate": DeformAggregate,
        "deform_roi_pool": RoIAlign,
        "reduce_window_max": MaxPool,
        "name": Name,
    }
    if "stack" not in plugin_system.PLUGIN_REGISTRY:
        plugins["stack"] = Stack
    for primitive, plugin in plugins.items():
        plugin_system.register_primitive(jaxpr_primitive=primitive)(plugin)


def _except_rows(lengthen: Callable[..., Any]) -> Callable[..., Any]:
    """`lengthen`, but values of one row stay as they are: jax2onnx before 0.17 gives them a wrong shape."""

    def lengthen_others(ctx: Any, value: Any, *rest: Any, **options: Any) -> Any:
        broadcasts = value.shape is not None and tuple(value.shape)[:1] == (1,)
        return value if broadcasts else lengthen(ctx, value, *rest, **options)

    return lengthen_others


def _check_maps(geometry: Any) -> None:
    if geometry.boundary != "padded":
        raise NotImplementedError(
            f"ONNX has no GridSample with boundary={geometry.boundary!r}, only with 'padded'."
        )
    if not all(isinstance(size, int) for shape in geometry.shapes for size in shape):
        raise NotImplementedError(
            "ONNX needs the height and width of a sampled map: give them as numbers in inputs."
        )


def _check_regions(geometry: Any, parts: int, bins: int) -> None:
    if not geometry.aligned:
        raise NotImplementedError(
            "ONNX has no deform_roi_pool: export the network up to the pooling, and from there on."
        )
    if parts or bins:
        raise NotImplementedError(
            "ONNX has deform_roi_align without offset and mask only: export the network up to the "
            "pooling, and from there on."
        )


def _one_batch_axis(ctx: Any, var: Any, batch: int) -> Any:
    """The value of `var` with its first `batch` axes merged."""
    value = ctx.get_value_for_var(var)
    if batch == 1:
        return value
    return _reshape(ctx, value, [-1, *_axes(ctx, var, batch, len(var.aval.shape))])


def _axes(ctx: Any, var: Any, start: int, stop: int) -> list[Any]:
    """Sizes of the axes of `var` from `start` to `stop`, as `_sizes` returns them."""
    return _sizes(ctx, ctx.get_value_for_var(var), var.aval.shape, range(start, stop))


def _slice(ctx: Any, value: Any, start: int, size: int, *, axis: int) -> Any:
    bounds = (_integers(ctx, number) for number in (start, start + size, axis))
    return _node(ctx, "Slice", value, *bounds, dtype=value.dtype)


def _grid(ctx: Any, positions: Any, size: tuple[int, int], unit_square: bool) -> Any:
    """Positions as GridSample counts them: (x, y), where -1 and 1 are the outer edges of the map."""
    factor, shift = np.array([2.0, 2.0]), np.array([-1.0, -1.0])
    if not unit_square:
        positions = _node(
            ctx, "Gather", positions, _integers(ctx, 1, 0), dtype=positions.dtype, axis=4
        )
        width_height = np.array(size[::-1])
        factor, shift = 2 / width_height, 1 / width_height - 1
    # jax2onnx gives a product the shape of the operands whose shape is known.
    positions.shape = ir.Shape((None, None, None, None, 2))
    scaled = _node(
        ctx, "Mul", positions, _numbers(ctx, factor, positions.dtype), dtype=positions.dtype
    )
    return _node(ctx, "Add", scaled, _numbers(ctx, shift, positions.dtype), dtype=positions.dtype)


def _node(ctx: Any, name: str, *operands: Any, dtype: Any, **attributes: Any) -> Any:
    listed = {k: list(v) if isinstance(v, list | tuple) else v for k, v in attributes.items()}
    value = getattr(ctx.builder, name)(*operands, _outputs=[ctx.fresh_name(name)], **listed)
    value.dtype = dtype
    return value


def _transpose(ctx: Any, value: Any, axes: Sequence[int]) -> Any:
    moved = _node(ctx, "Transpose", value, dtype=value.dtype, perm=axes)
    if value.shape is not None:
        moved.shape = ir.Shape([value.shape[axis] for axis in axes])
    return moved


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


def _channels_last(ctx: Any, eqn: Any, value: Any) -> Any:
    """`value [N, C, H, W]`, which holds the result `[*batch, H, W, C]` of `eqn`, to `[N, H, W, C]`."""
    *batch, height, width, channels = ctx.get_value_for_var(eqn.outvars[0]).shape
    count = batch[0] if len(batch) == 1 else None
    # jax2onnx moves the transposition past other nodes, and takes their shapes from this shape.
    value.shape = ir.Shape((count, channels, height, width))
    return _transpose(ctx, value, _CHANNELS_LAST)


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


def _sum_of_samples(ctx: Any, values: Any, factor: Any, samples: Shape) -> Any:
    """Weighted sums `[N * groups, channels, Q]` of the values of `samples = [Q, points]`."""
    if factor is not None:
        factor = _reshape(ctx, factor, [-1, 1, *samples])
        values = _node(ctx, "Mul", values, factor, dtype=values.dtype)
    return _node(ctx, "ReduceSum", values, _integers(ctx, 3), dtype=values.dtype, keepdims=0)


def _grid_sample(ctx: Any, image: Any, grid: Any, whole_positions: bool = False) -> Any:
    linear = "linear" if ctx.opset >= 20 else "bilinear"
    return _node(
        ctx,
        "GridSample",
        image,
        grid,
        dtype=image.dtype,
        mode="nearest" if whole_positions else linear,
        padding_mode="zeros",
        align_corners=0,
    )


def _numbers(ctx: Any, values: np.ndarray, dtype: Any) -> Any:
    return ctx.bind_const_for_var(object(), values.astype(dtype.numpy()))


def _product(sizes: Shape) -> int:
    return int(np.prod(sizes))


def _pads(pairs: Sequence[Sequence[int]]) -> list[int]:
    """ONNX lists the pads before all axes, then the pads after all axes."""
    return [pad for ends in zip(*pairs, strict=True) for pad in ends]


def _bind(ctx: Any, eqn: Any, value: Any) -> None:
    value.shape = ctx.get_value_for_var(eqn.outvars[0]).shape
    ctx.bind_value_for_var(eqn.outvars[0], value)
