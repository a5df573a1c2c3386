# SPDX-License-Identifier: MIT
"""The parts of a deformable convolution layer that are the same in every neural network library."""

import contextvars
import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jax_dcn._src.deform_conv2d.function import deform_conv2d
from jax_dcn._src.deform_conv2d.geometry import Boundary, conv_geometry
from jax_dcn._src.deform_conv2d.samples import sampling_positions
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public
from jax_dcn._src.sampling.window import Padding


class DeformConvOptions(Protocol):
    """The options of a layer, which every `DeformConv` has as attributes of these names."""

    kernel_size: int | Sequence[int]
    strides: int | Sequence[int]
    padding: Padding
    kernel_dilation: int | Sequence[int]
    feature_group_count: int
    offset_groups: int
    modulated: bool
    mask_scale: float
    boundary: Boundary
    precision: Any
    implementation: Implementation


def kernel_size(layer: DeformConvOptions) -> tuple[int, int]:
    """Taps `(height, width)`."""
    size = layer.kernel_size
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def offset_features(layer: DeformConvOptions) -> int:
    """Number of channels of the offset branch."""
    height, width = kernel_size(layer)
    return layer.offset_groups * height * width * (3 if layer.modulated else 2)


# Whether `offset_convolution` pads its channels: not in programs that XLA does not run.
pads_offset_branch = contextvars.ContextVar("pads_offset_branch", default=True)


def offset_convolution(
    x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, faster on CPU for the 18 or 27 channels of an offset branch."""
    if not pads_offset_branch.get():
        return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)
    # XLA's CPU convolution is two to three times slower where the number of channels is no multiple
    # of 8.
    features = kernel.shape[-1]
    kernel = jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, -features % 8)])
    return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)[..., :features]


def offset_and_mask(
    layer: DeformConvOptions, predicted: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Splits the offset branch's output into offset `[..., Ho, Wo, G, K, 2]` and mask."""
    height, width = kernel_size(layer)
    samples = layer.offset_groups * height * width
    shape = (*predicted.shape[:-1], layer.offset_groups, height * width)
    # Channels are ordered as in published checkpoints: first the offsets of all groups, (dy, dx)
    # interleaved, then the masks of all groups.
    offset = predicted[..., : 2 * samples].reshape(*shape, 2)
    if not layer.modulated:
        return offset, None
    logits = predicted[..., 2 * samples :].reshape(shape)
    return offset, layer.mask_scale * jax.nn.sigmoid(logits)


def convolve(
    layer: DeformConvOptions,
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """`jax_dcn.deform_conv2d` with the options of `layer`."""
    return deform_conv2d(
        x,
        kernel,
        offset,
        mask,
        bias,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        boundary=layer.boundary,
        precision=layer.precision,
        implementation=layer.implementation,
    )


def positions(layer: DeformConvOptions, x: jax.Array, offset: jax.Array) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[..., Ho, Wo, G, K, 2]`."""
    size = kernel_size(layer)
    geometry = conv_geometry(
        x.shape[-3:-1],
        size,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
    )
    # In float32, since bfloat16 cannot represent every pixel index of a large image.
    wide = offset if offset.dtype == jnp.float64 else offset.astype(jnp.float32)
    return sampling_positions(wide, size, geometry)


_OFFSET_BRANCHES = ("offset_conv", "conv_offset", "conv_offset_mask")


@public("jax_dcn.layers")
def is_offset_branch(parameters: Any, names: Sequence[str] | None = None) -> Any:
    """Marks the parameters of offset branches, which the papers train at a lower learning rate.

    Args:
      parameters: Any tree of parameters: `nnx.state(model, nnx.Param)`, Linen's
        `variables["params"]`, or gradients of either.
      names: Names of the modules that predict offsets. `None`: `offset_conv`, and the names of
        published networks, `conv_offset` and `conv_offset_mask`.

    Returns:
      A tree of the same structure: `True` for a parameter inside a module of these names, `False`
      for every other parameter.

    Raises:
      ValueError: if no parameter is inside such a module, or one of the given `names` is the name of
        no module; the message lists the names of the tree.

    Examples:
      A tenth of the learning rate, as in the papers, whatever the optimiser:

      >>> import optax
      >>> optimizer = optax.chain(
      ...     optax.sgd(0.1, momentum=0.9),
      ...     optax.masked(optax.scale(0.1), is_offset_branch),
      ... )

      Or an optimiser of its own, with the answers as labels:

      >>> optimizer = optax.multi_transform(
      ...     {False: optax.adamw(1e-3), True: optax.adamw(1e-4, weight_decay=0)}, is_offset_branch
      ... )

      Both run on any network:

      >>> import jax.numpy as jnp
      >>> parameters = {"kernel": jnp.ones(2), "offset_conv": {"kernel": jnp.ones(2)}}
      >>> is_offset_branch(parameters)
      {'kernel': False, 'offset_conv': {'kernel': True}}
      >>> state = optimizer.init(parameters)
      >>> updates, state = optimizer.update(parameters, state, parameters)

      Branches of other names:

      >>> import functools
      >>> mask = functools.partial(is_offset_branch, names=["shift"])
      >>> mask({"shift": jnp.ones(2), "kernel": jnp.ones(2)})
      {'kernel': False, 'shift': True}
    """
    wanted = _OFFSET_BRANCHES if names is None else _as_names(names)
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    found = {name for path, _ in leaves for name in _names(path)}
    absent = [name for name in wanted if name not in found]
    if leaves and (absent if names is not None else len(absent) == len(wanted)):
        raise ValueError(
            f"no parameter is in a module named {' or '.join(map(repr, absent))}: pass names= of "
            f"the modules that predict offsets. The names here are {sorted(found)}."
        )
    marks = [not set(wanted).isdisjoint(_names(path)) for path, _ in leaves]
    return jax.tree.unflatten(tree, marks)


def _as_names(names: Sequence[str]) -> list[str]:
    listed = [names] if isinstance(names, str) else list(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"names must be names of modules, got {names!r}.")
    return listed


def _names(path: tuple[Any, ...]) -> list[str]:
    return re.split("[/.]", jax.tree_util.keystr(path, simple=True, separator="/"))
