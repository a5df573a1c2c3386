# SPDX-License-Identifier: MIT
"""ONNX's `DeformConv`: writes it, from models that hold deformable convolutions, and evaluates it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jax_dcn.interop import torchvision

if TYPE_CHECKING:
    import onnx

OPSET = 22
"""`DeformConv` exists from 19 on; the version of 22 also takes bfloat16."""


def to_onnx(
    function: Callable[..., Any], inputs: Sequence[Any], *, opset: int = OPSET, **options: Any
) -> Any:
    """Exports a function or a Flax module; its deformable convolutions become `DeformConv` nodes.

    `jax2onnx.to_onnx`, which writes everything else, and has the options. Installed by
    `pip install 'jax-dcn[onnx]'`.

    Args:
      function: Of arrays, or a module; it computes values, not gradients.
      inputs: Shapes of the arguments, for example `[("batch", 224, 224, 3)]` where the batch is free,
        or arrays.
      opset: Version of ONNX's operators, at least 19.
      options: As `jax2onnx.to_onnx` takes them: `return_mode="file"` with `output_path`,
        `inputs_as_nchw=[0]`, `input_names` and others.

    Returns:
      The `onnx.ModelProto`, or what `return_mode` asks for. DeformConv nodes are channels first, with
      transpositions around them.

    Raises:
      ImportError: without jax2onnx.
      NotImplementedError: for `boundary="legacy"`, which ONNX does not have.
      ValueError: for an `opset` below 19.

    Examples:
      A layer, for batches of any size, in a file::

          layer = jax_dcn.nnx.DeformConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
          to_onnx(layer, [("batch", 9, 9, 3)], return_mode="file", output_path="layer.onnx")
    """
    if opset < 19:
        raise ValueError(f"opset must be at least 19, which brought DeformConv, got {opset}.")
    try:
        import jax2onnx

        from jax_dcn.interop import _jax2onnx
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs jax2onnx: pip install 'jax-dcn[onnx]' ({error})"
        ) from error
    _jax2onnx.register()
    # Traced here, where Flax's layers are Flax's own: jax2onnx replaces them by its own, which do
    # not take all their arguments.
    avals = _abstract(inputs)
    traced = jaxpr_as_fun(jax.make_jaxpr(function)(*avals))
    return jax2onnx.to_onnx(traced, avals, opset=opset, **options)


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
      W: `[O, C // group, kh, kw]`.
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
    if kernel_shape is not None and tuple(kernel_shape) != W.shape[2:]:
        raise ValueError(f"kernel_shape is {tuple(kernel_shape)}, but W has shape {W.shape}.")
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
    top, left, bottom, right = pads or (0, 0, 0, 0)
    padding: Any = ((top, bottom), (left, right))  # not the same at both ends, unlike torchvision's
    return torchvision.deform_conv2d(X, offset, W, B, strides or 1, padding, dilations or 1, mask)


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


def _abstract(inputs: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """The arguments as JAX traces them; names are sizes that stay free."""
    scope = jax.export.SymbolicScope()
    avals = []
    for entry in inputs:
        shape = getattr(entry, "shape", entry)
        sizes = jax.export.symbolic_shape(",".join(map(str, shape)), scope=scope)
        avals.append(jax.ShapeDtypeStruct(sizes, getattr(entry, "dtype", jnp.float32)))
    return avals
