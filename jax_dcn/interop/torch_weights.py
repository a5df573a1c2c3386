# SPDX-License-Identifier: MIT
"""Checkpoints of PyTorch networks, deformable ones in every published dialect, as Flax parameters.

    weights = read_state_dict("resnet50_dcn.pth")
    nnx.update(model, to_flax(weights, model))                    # NNX
    variables = to_flax(weights, variables)                       # Linen

Parameters are found by name: a network whose modules have PyTorch's names needs no table.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from jax_dcn._src.arguments import flag, text, texts
from jax_dcn.interop._torch_arrays import convolution, transposed_convolution
from jax_dcn.interop._torch_conversion import Conversion, Report
from jax_dcn.interop._torch_files import read_state_dict
from jax_dcn.interop._torch_variables import arrays_of, variables_of

__all__ = [
    "Report",
    "convolution",
    "read_state_dict",
    "to_flax",
    "to_flax_and_report",
    "transposed_convolution",
]

Rename = Mapping[str, str] | Callable[[str], str]
Convert = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def to_flax(
    weights: Mapping[str, Any],
    like: Any,
    *,
    prefix: str = "",
    leave: str | Collection[str] = (),
    rename: Rename | None = None,
    convert: Convert | None = None,
    strict: bool = True,
) -> Any:
    r"""Arranges PyTorch parameters as the variables of a Flax network.

    The path of a variable is its PyTorch name: `layer1/0/bn1/scale` is `layer1.0.bn1.weight`. The
    exact name is tried first. A name like `layer1_0`, Linen's name of `layer1[0]`, is also read as
    `layer1.0`, unless another module has this name. The items `net.layers.0` of a `Sequential` of either
    Flax are `net.0`.

    | Flax | PyTorch | axes |
    |---|---|---|
    | `kernel` | `weight` | `[*kernel, I, O]` from `[O, I, *kernel]` |
    | `kernel` of a `ConvTranspose` | `weight` | `transposed_convolution` |
    | `scale`, `bias` | `weight`, `bias` | |
    | `mean`, `var` | `running_mean`, `running_var` | |
    | `embedding` | `weight` | the same |
    | any other, `scales/0/scale` | the same name | the same, if the shape allows no other |

    The branch `offset_conv` of a deformable layer is found in every dialect below. The channel
    order is the same in all of them: the offsets of all groups, then the masks.

    | `conv2/kernel` | `conv2/offset_conv/kernel` | published by |
    |---|---|---|
    | `conv2.weight` | `conv2.conv_offset.weight` | mmcv, mmdetection, EDVR, version 1 of the original |
    | `conv2.weight` | `conv2.conv_offset_mask.weight` | DCNv2, CenterNet, older EDVR |
    | `conv2.weight` | `conv2_offset.weight` | mmdetection before mmcv, detectron2 |
    | `conv2.weight` | `conv_offset_mask.weight` | the original's mmdetection |
    | `conv2.regular_conv.weight` | `conv2.offset_conv.weight` and `conv2.modulator_conv.weight` | layers on torchvision's function; their mask is `2 * sigmoid`: `mask_scale=2.0` |

    A module of the network's own named `offset_conv`, `modulator_conv` or `regular_conv`, as in a
    block around `DeformConv(offset_branch=False)`, takes the tensors of its own name.

    Layers of attention have one dialect: `sampling_offsets`, `attention_weights`, `value_proj` and
    `output_proj` of `MSDeformAttn` are so called in Deformable DETR, DINO, Grounding DINO, Mask2Former,
    RT-DETR, RT-DETRv2 and D-FINE, in mmcv and in Hugging Face. The buffers `num_points_scale` and
    `n_points_scale` of the last two fill no variable; with an NNX model they are compared with the
    layer's `points`, which shapes do not tell. The layers of InternImage and FlashInternImage have
    the names of `DCNv3` and `DCNv4`; Linen's `dw_conv_0` and `dw_conv_1_1` are their `dw_conv.0` and
    `dw_conv.1.1`.

    Args:
      weights: Arrays or tensors by their PyTorch names, see `read_state_dict`.
      like: The network's variables: an NNX model, `nnx.state(model)`, or what Linen's `init`
        returns. An NNX model is best: a state does not say which modules hold its kernels. Variables
        that are not floating point (counters, random streams) keep their values.
      prefix: The beginning of this network's names in `weights`: `"backbone."` in detectors of
        mmdetection, `"module."` for a network saved in parallel, `"layer4.2.conv2."` for one layer.
        Other names are ignored.
      leave: Names of modules to leave as they are in `like`, and to ignore in `weights`: `"fc"`
        for other classes, `"offset_conv"` to make an ordinary network deformable. A module is left
        by its Flax path or by its name in PyTorch, with or without the prefix.
      rename: Translates the names in `weights` to names of the Flax network: a function of a name,
        or a table of regular expressions and replacements, each applied to every name. `rename` is
        applied before `prefix`.
      convert: A table of regular expressions and functions. The variables whose dotted path matches
        are filled with the function's result for their tensor: `{r"^pos_embed$": np.asarray}`
        keeps the axes, `{r"\bup\.kernel$": transposed_convolution}` names the module. A function
        may also make floating point of a tensor of integers.
      strict: Whether all variables must be found, and all of `weights` used.

    Returns:
      The variables in the structure of `like`, with the values of `weights` as NumPy arrays in the
      dtypes of `like`. For an NNX model, its state.

    Raises:
      ValueError: if shapes differ; if the order of a tensor's axes is not certain; if nothing was
        found; or, if `strict`, if parameters are missing or left over. The message lists all names.

    Note:
      Only names and shapes are compared. A network of the same shapes that computes something else,
      such as one with its strides in another convolution of the block, is not told apart. A square
      kernel in a state or in Linen's variables is read as a convolution's, unless its name or an
      even size suggests a transposed convolution.

    Examples:
      >>> import numpy as np
      >>> like = {"params": {"conv": {"kernel": np.zeros((3, 3, 8, 16)), "bias": np.zeros(16)}}}
      >>> weights = {"conv.weight": np.ones((16, 8, 3, 3)), "conv.bias": np.ones(16)}
      >>> to_flax(weights, like)["params"]["conv"]["kernel"].shape
      (3, 3, 8, 16)

      Names that differ from PyTorch's:

      >>> weights = {"net.c.weight": np.ones((16, 8, 3, 3)), "net.c.bias": np.ones(16)}
      >>> to_flax(weights, like, rename={r"^net\.c\.": "conv."})["params"]["conv"]["bias"].sum()
      np.float64(16.0)
    """
    options = dict(prefix=prefix, leave=leave, rename=rename, convert=convert, strict=strict)
    return to_flax_and_report(weights, like, **options)[0]  # type: ignore[arg-type]


def to_flax_and_report(
    weights: Mapping[str, Any],
    like: Any,
    *,
    prefix: str = "",
    leave: str | Collection[str] = (),
    rename: Rename | None = None,
    convert: Convert | None = None,
    strict: bool = True,
) -> tuple[Any, Report]:
    """`to_flax`, and the names of the parameters that were loaded, missing and unexpected.

    Args:
      weights, like, prefix, leave, rename, convert, strict: See `to_flax`. The report is of use with
        `strict=False`.

    Returns:
      The variables, and the report.

    Raises:
      ValueError: as `to_flax` does.

    Examples:
      >>> import numpy as np
      >>> like = {"params": {"fc": {"kernel": np.zeros((8, 5)), "bias": np.zeros(5)}}}
      >>> weights = {"fc.weight": np.ones((5, 8)), "head.weight": np.ones((3, 5))}
      >>> variables, report = to_flax_and_report(weights, like, strict=False)
      >>> report.missing_keys, report.unexpected_keys
      (['fc.bias'], ['head.weight'])
    """
    leave = texts("leave", leave)
    text("prefix", prefix)
    flag("strict", strict)
    if rename is not None and not callable(rename):
        _check_table("rename", rename, "replacements", lambda entry: isinstance(entry, str))
    if convert is not None:
        _check_table("convert", convert, "functions", callable)
    tree, variables = variables_of(like)
    conversion = Conversion(arrays_of(weights, rename), variables, prefix, leave, convert or {})
    values = [conversion.value(variable) for variable in variables]
    report = conversion.report(strict=strict)
    return jax.tree_util.tree_unflatten(tree, values), report


def _check_table(name: str, value: Any, kind: str, is_entry: Callable[[Any], bool]) -> None:
    """Refuses anything but a table of regular expressions and entries, which the error calls `kind`."""
    if not isinstance(value, Mapping) or not all(
        isinstance(pattern, str) and is_entry(entry) for pattern, entry in value.items()
    ):
        raise ValueError(
            f"{name} must be a table of regular expressions and {kind}, got {value!r}."
        )
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{name} has the pattern {pattern!r}, which is no regular expression: {error}."
            ) from error
