# SPDX-License-Identifier: MIT
"""Exports functions and models to ONNX, and evaluates ONNX's operator `DeformConv`."""

import contextlib
import inspect
import logging
import numbers
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jax_dcn._src.arguments import is_integer, positive
from jax_dcn._src.operator.convolution import runs_on_xla
from jax_dcn.interop._channels_first import ChannelsFirst, integers

if TYPE_CHECKING:
    import onnx

OPSET = 22
"""`DeformConv` exists from 19 on; the version of 22 also takes bfloat16."""


def to_onnx(
    function: Callable[..., Any],
    inputs: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = OPSET,
    **options: Any,
) -> Any:
    """Exports a function or a Flax module, its operators as nodes of ONNX's own operators.

    `deform_conv2d` becomes a `DeformConv` node. `deform_aggregate`, and with it `ms_deform_attn`,
    `dcnv3`, `dcnv4` and `grid_sample`, becomes a `GridSample` node for each map and a weighted sum of
    the samples; the sizes of the maps must be known. `deform_roi_align` without `offset` and `mask`
    becomes a `RoiAlign` node. jax2onnx writes all other nodes. Installed by
    `pip install 'jax-dcn[onnx]'`.

    Args:
      function: A function of arrays, or a module. Derivatives are not exported.
      inputs: Shapes of the arguments, or arrays of these shapes: `[("batch", 224, 224, 3)]`. A single
        argument needs no list. A size with a name is free: `("batch", "height", "width", 3)`. With
        free height and width, `padding="SAME"` needs strides of 1.
      path: The file to write. `None` returns the model.
      opset: Version of ONNX's operators, at least 19. ONNX Runtime has no RoiAlign of 22 on the CPU:
        export `deform_roi_align` with `opset=21`.
      options: Options of `jax2onnx.to_onnx`: `inputs_as_nchw=[0]`, `input_names` and others.

    Returns:
      The `onnx.ModelProto`, or the path. DeformConv nodes are channels first, with transpositions
      around them; any number of batch axes becomes one.

    Raises:
      ImportError: without jax2onnx.
      NotImplementedError: for `boundary="legacy"`, `deform_roi_pool`, and `deform_roi_align` with
        `offset` or `mask`, which ONNX does not have, and for sampled maps whose height or width is
        free.
      ValueError: for an `opset` below 19, for `inputs` that are no shapes or that the function does
        not take, for a `path` that is none, for a model in training mode, and for a Linen module
        without its parameters.

    Note:
      ONNX Runtime refuses regions of `deform_roi_align` that have no image or are not finite and,
      with `sampling_ratio=0`, regions whose corners are reversed.

    Examples:
      A layer, for batches of any size, in a file::

          layer = jax_dcn.nnx.DeformConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
          to_onnx(layer, ("batch", 9, 9, 3), "layer.onnx")
    """
    if not isinstance(opset, numbers.Integral) or opset < 19:
        raise ValueError(f"opset must be at least 19, which brought DeformConv, got {opset!r}.")
    if not callable(function):
        raise ValueError(f"function must be a function or a module, got {function!r}.")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the path of a file, or None, got {path!r}.")
    avals = _abstract(inputs)
    _check_model(function)
    _check_count(function, avals, inputs)
    jax2onnx = _import_jax2onnx()
    if path is not None:
        options |= dict(return_mode="file", output_path=os.fspath(path))
    # Traced here, where Flax's layers are Flax's own: jax2onnx replaces them by its own layers, which
    # do not take all arguments of Flax's. Only XLA profits from other forms of ordinary convolutions.
    with runs_on_xla(False):
        traced = _trace(function, avals)
    try:
        # Values without a type, which jax2onnx writes for free sizes, do no harm.
        with _only_errors("onnx_ir.serde"):
            return jax2onnx.to_onnx(jaxpr_as_fun(traced), avals, opset=opset, **options)
    except Exception as error:
        if type(error).__name__ == "InconclusiveDimensionOperation" and _has_free_padding(traced):
            raise ValueError(
                'inputs has sizes with a name that ONNX cannot compute with: padding="SAME" with '
                "strides needs a known height and width, padding=1 does not."
            ) from error
        raise


def _import_jax2onnx() -> Any:
    """The module jax2onnx, which knows the primitives of this library from here on."""
    try:
        import jax2onnx

        from jax_dcn.interop import _jax2onnx
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs jax2onnx: pip install 'jax-dcn[onnx]' ({error})"
        ) from error
    # A plugin for another package, which does not work with this JAX, is no concern of an export.
    with _only_errors("jax2onnx.plugins.plugin_system"):
        _jax2onnx.register()
    return jax2onnx


@contextlib.contextmanager
def _only_errors(name: str) -> Iterator[None]:
    """Silences the warnings of the logger `name`."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _trace(function: Callable[..., Any], avals: Sequence[Any]) -> Any:
    try:
        return jax.make_jaxpr(function)(*avals)
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # Flax's, for a model that changes itself.
            raise ValueError(
                "function changes its model. One in training mode does: call model.eval() first. One "
                "under nnx.jit does: write jax.jit for nnx.jit, or leave it out."
            ) from error
        raise


def _has_free_padding(traced: Any) -> bool:
    """Whether a padding in a traced function depends on a free size."""
    for equation in traced.eqns:
        padding = jax.tree.leaves(equation.params.get("padding"))
        inner = [value for value in jax.tree.leaves(equation.params) if hasattr(value, "eqns")]
        if any(map(jax.export.is_symbolic_dim, padding)) or any(map(_has_free_padding, inner)):
            return True
    return False


def _check_count(function: Callable[..., Any], avals: Sequence[Any], inputs: Any) -> None:
    """Refuses more or fewer arrays than the function takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function without a signature
        return
    try:
        signature.bind(*avals)
    except TypeError as error:
        raise ValueError(f"inputs does not fit the function, {error}: got {inputs!r}.") from None


def _check_model(model: Any) -> None:
    """Refuses a Linen module without parameters, and an NNX model in training mode."""
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(model, linen.Module) and model.scope is None:
        raise ValueError(
            f"function must have its parameters, got the Linen module {type(model).__name__}: give "
            "functools.partial(module.apply, variables)."
        )
    if nnx is None or not isinstance(model, nnx.Module):
        return
    for path, module in nnx.iter_modules(model):
        trains = [
            f"{name}=False"
            for name in ("use_running_average", "deterministic")
            if getattr(module, name, None) is False and getattr(module, "rate", None) != 0
        ]
        if trains:
            where = ".".join(map(str, path)) or type(module).__name__
            raise ValueError(f"{where} is in training mode ({trains[0]}): call model.eval() first.")


def deform_conv(
    X: jax.Array,
    W: jax.Array,
    offset: jax.Array,
    B: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    """The operator `DeformConv`, with ONNX's names of inputs and attributes.

    Args:
      X: Images, `[N, C, H, W]`.
      W: Weights, `[O, C // group, kh, kw]`.
      offset: Displacements in pixels, `[N, 2 * offset_group * kh * kw, Ho, Wo]`; channels by group,
        then by tap, then `(dy, dx)`.
      B: `[O]`.
      mask: Modulation, `[N, offset_group * kh * kw, Ho, Wo]`.
      dilations, strides: `(height, width)`; `None` is 1.
      group, offset_group: Numbers of groups.
      kernel_shape: `(kh, kw)`; `None` infers it from `W`.
      pads: `(top, left, bottom, right)`; `None` is 0.

    Returns:
      `[N, O, Ho, Wo]`.

    Raises:
      ValueError: if attributes and shapes disagree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_dcn.interop.onnx import deform_conv
      >>> x, weight, offset = jnp.ones((1, 2, 5, 6)), jnp.ones((3, 2, 2, 2)), jnp.zeros((1, 8, 4, 5))
      >>> deform_conv(x, weight, offset).shape
      (1, 3, 4, 5)
    """
    arrays = ChannelsFirst.of(("X", "offset", "W", "B", "mask"), X, offset, W, B, mask)
    X, W, offset = arrays.input, arrays.weight, arrays.offset
    group = positive("group", group)
    offset_group = positive("offset_group", offset_group)
    if kernel_shape is not None:
        size = integers("kernel_shape", kernel_shape, 2, least=1)
        if size != W.shape[2:]:
            raise ValueError(f"kernel_shape is {size}, but W has shape {W.shape}.")
    if X.shape[1] != group * W.shape[1]:
        raise ValueError(
            f"W must be [O, C // group, kh, kw] for {X.shape[1]} channels in {group} groups, got "
            f"shape {W.shape}."
        )
    if offset.shape[1] != 2 * offset_group * W.shape[2] * W.shape[3]:
        raise ValueError(
            f"offset must have 2 * offset_group * kh * kw = "
            f"{2 * offset_group * W.shape[2] * W.shape[3]} channels, got shape {offset.shape}."
        )
    top, left, bottom, right = integers("pads", (0,) * 4 if pads is None else pads, 4, least=0)
    sh, sw = integers("strides", (1, 1) if strides is None else strides, 2, least=1)
    dh, dw = integers("dilations", (1, 1) if dilations is None else dilations, 2, least=1)
    return arrays.convolve((sh, sw), ((top, bottom), (left, right)), (dh, dw))


def evaluate(node: "onnx.NodeProto", inputs: Mapping[str, jax.Array]) -> jax.Array:
    """Evaluates one `DeformConv` node of an ONNX graph.

    Args:
      node: The node.
      inputs: The arrays that it reads, by the names that it gives them; others are ignored.

    Returns:
      `[N, O, Ho, Wo]`.

    Raises:
      ValueError: for a node of another operator, and as `deform_conv` does.
      KeyError: if an input is missing.
    """
    import onnx.helper

    if node.op_type != "DeformConv":
        raise ValueError(f"node must be a DeformConv, got {node.op_type}.")
    # An empty name is an optional input that was left out.
    arrays = [jnp.asarray(inputs[name]) if name else None for name in node.input]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return deform_conv(*arrays, **attributes)  # type: ignore[arg-type]


def _abstract(inputs: Any) -> list[jax.ShapeDtypeStruct]:
    """The arguments as JAX traces them; names are sizes that stay free."""
    scope = jax.export.SymbolicScope()
    is_one = hasattr(inputs, "shape") or (inputs and _is_shape(inputs))
    entries = [inputs] if is_one else inputs
    if not isinstance(entries, Sequence) or not all(
        _is_shape(getattr(entry, "shape", entry)) for entry in entries
    ):
        raise ValueError(
            f'inputs must be shapes such as ("batch", 224, 224, 3), or arrays, got {inputs!r}.'
        )
    avals = []
    for entry in entries:
        shape: Any = getattr(entry, "shape", entry)
        sizes = jax.export.symbolic_shape(",".join(map(str, shape)), scope=scope)
        avals.append(jax.ShapeDtypeStruct(sizes, _dtype(entry)))
    return avals


def _dtype(entry: Any) -> Any:
    """The dtype of an array, or of the type of an array; a shape alone is a shape of float32."""
    if hasattr(entry, "__array__"):
        return jnp.asarray(entry).dtype
    return getattr(entry, "dtype", jnp.float32)


def _is_shape(entry: Any) -> bool:
    """Whether `entry` is a tuple or list of sizes and of names of sizes."""
    if not isinstance(entry, tuple | list):
        return False
    return all(
        isinstance(size, str)
        or jax.export.is_symbolic_dim(size)
        or (is_integer(size) and size >= 0)
        for size in entry
    )
