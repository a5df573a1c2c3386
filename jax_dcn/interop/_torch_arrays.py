# SPDX-License-Identifier: MIT
"""The order of axes: tensors of PyTorch as variables of Flax."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Shape = Sequence[int]

# Names of modules that are often transposed convolutions.
_UPSAMPLING = re.compile(r"deconv|transpos|^up(_?sampl\w*|_?conv|_?scale)?_?\d*$", re.IGNORECASE)


class Misfit(ValueError):
    """A tensor that cannot fill its variable.

    Attributes:
      kind: `misshapen`, or `uncertain` if the order of axes or the meaning is not certain.
      found, expected: The shapes of a misshapen tensor.
    """

    def __init__(self, kind: str, message: str, found: Shape = (), expected: Shape = ()):
        super().__init__(message)
        self.kind, self.found, self.expected = kind, tuple(found), tuple(expected)

    def hint(self, is_offset_branch: bool, is_known: bool) -> str:
        """Advice for a tensor of this shape, or nothing; `is_known` says whether the module is."""
        found, expected = self.found, self.expected
        if not found or len(found) != len(expected):
            return ""
        if is_offset_branch and found[1:] == expected[1:]:
            for version, ratio in ((1, (2, 3)), (2, (3, 2))):
                if found[0] * ratio[1] == expected[0] * ratio[0]:
                    return (
                        f"{found[0]} channels for {expected[0]} are version {version} weights: "
                        f"`modulated={version == 2}`."
                    )
            if found[0] % expected[0] == 0 or expected[0] % found[0] == 0:
                return (
                    f"{found[0]} channels for {expected[0]}: is offset_groups the published number?"
                )
        if len(found) > 2 and found == (expected[1], expected[0], *expected[2:]):
            state = "give the NNX model itself rather than its state"
            model = "make the module an nnx.ConvTranspose" if is_known else state
            return (
                f"A transposed convolution has such weights: {model}, or give "
                "convert={...: transposed_convolution}."
            )
        return ""


def convolution(weight: np.ndarray) -> np.ndarray:
    """The kernel `[*kernel, I, O]` of a convolution or a dense layer from `[O, I, *kernel]`."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def transposed_convolution(weight: np.ndarray) -> np.ndarray:
    """The kernel `[*kernel, I, O]` of Flax's `ConvTranspose` from PyTorch's `[I, O, *kernel]`.

    PyTorch flips the kernel and Flax does not. With `transpose_kernel=True` Flax flips it, too:
    then `convolution` gives the kernel.
    """
    return np.flip(np.moveaxis(weight, (0, 1), (-2, -1)), tuple(range(weight.ndim - 2)))


def kernel(weight: np.ndarray, shape: Shape, path: Sequence[str] | None, module: Any) -> np.ndarray:
    """A `weight` of PyTorch as the `kernel` of `module`.

    Args:
      weight: The tensor.
      shape: The shape of the kernel.
      path: Names of the modules around the kernel; `None` for a deformable convolution.
      module: The Flax module; `None` where it is unknown.

    Raises:
      Misfit: if shapes disagree, or if several orders of axes are possible.
    """
    kinds = _kinds(module)
    _check_counterpart(module, kinds, len(shape))
    if "ConvTranspose" in kinds and not module.transpose_kernel:
        _check_shape(weight, (*shape[-2:], *shape[:-2]))
        return transposed_convolution(weight)
    is_known = kinds & {"Conv", "ConvTranspose", "DeformConv"}
    if path is not None and not is_known and _may_be_transposed(shape, path):
        message = f"a convolution and a transposed convolution may have the kernel {tuple(shape)}"
        raise Misfit("uncertain", message)
    _check_shape(weight, (shape[-1], shape[-2], *shape[:-2]))
    return convolution(weight)


def same_axes(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """A tensor that no rule reorders.

    Raises:
      Misfit: if shapes disagree, or if the shape allows several orders of axes.
    """
    sizes = [size for size in shape if size != 1]
    if weight.shape == tuple(shape) and len(set(sizes)) < len(sizes):
        raise Misfit("uncertain", f"axes of equal size in {weight.shape} may be in another order")
    return same_shape(weight, shape)


def same_shape(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """A tensor whose axes are the same in Flax.

    Raises:
      Misfit: if shapes disagree.
    """
    _check_shape(weight, tuple(shape))
    return weight


def converted(
    function: Callable[[np.ndarray], np.ndarray], weight: np.ndarray, shape: Shape
) -> np.ndarray:
    """`function(weight)`.

    Raises:
      Misfit: if the result has another shape than the variable.
    """
    result = np.asarray(function(weight))
    _check_shape(result, tuple(shape))
    return result


def points_of_shares(shares: np.ndarray) -> list[int]:
    """The points of each level, from the share 1 / n of each sample of a level of n points."""
    points: list[int] = []
    while sum(points) < shares.size:
        points.append(max(1, round(1 / shares[sum(points)])))
    return points


def _check_shape(array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        message = f"expected {expected}, got {array.shape}"
        raise Misfit("misshapen", message, array.shape, expected)


def _kinds(module: Any) -> set[str]:
    """Names of the classes of Flax and of this library that `module` is of."""
    ours = ("flax.", "jax_dcn.")
    return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith(ours)}


def _check_counterpart(module: Any, kinds: set[str], axes: int) -> None:
    """Refuses the kernel, of so many axes, of a module that PyTorch does not have."""
    if "Einsum" in kinds or ("LinearGeneral" in kinds and axes > 2):
        raise Misfit("uncertain", f"PyTorch has no counterpart of {type(module).__name__}")
    if "Conv" in kinds and set(np.ravel(module.input_dilation)) != {1}:
        raise Misfit("uncertain", "a Conv with input_dilation may be a transposed convolution")
    if axes != _axes(module, kinds, axes):
        message = f"a kernel of {axes} axes in a {type(module).__name__} may be a stack of layers"
        raise Misfit("uncertain", message)


def _axes(module: Any, kinds: set[str], unknown: int) -> int:
    """The axes of the kernel of one `module`; `unknown` where its class does not say."""
    if "DeformConv" in kinds:
        return 4
    if kinds & {"Conv", "ConvTranspose"}:
        return len(module.kernel_size) + 2
    return 2 if "Linear" in kinds else unknown


def _may_be_transposed(shape: Shape, path: Sequence[str]) -> bool:
    """Whether a kernel `[*kernel, I, O]` fits a transposed convolution and looks like one."""
    *sizes, features_in, features_out = shape
    if not sizes or features_in not in (1, features_out):
        return False
    names = [name for name in path if not name.isdigit()] or [""]
    return all(size % 2 == 0 for size in sizes) or bool(_UPSAMPLING.search(names[-1]))
