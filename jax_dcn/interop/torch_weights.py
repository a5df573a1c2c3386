# SPDX-License-Identifier: MIT
"""Checkpoints of PyTorch networks, deformable ones in every published dialect, as Flax parameters.

    weights = read_state_dict("resnet50_dcn.pth")
    variables = to_flax(weights, variables)                       # Linen
    nnx.update(model, to_flax(weights, nnx.state(model)))         # NNX

Parameters are found by name: a network whose modules are called as in PyTorch needs no table.
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

# What flax calls a parameter or a statistic, and what torch does.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Where the offset branch of the layer `{parent}{name}` is. In order: ours; mmcv and the original's
# DeformConvPack; its ModulatedDeformConvPack; mmdetection before mmcv had the layers, and
# detectron2; the original's ModulatedDeformConv in mmdetection.
_OFFSET_BRANCHES = (
    "{parent}{name}.offset_conv",
    "{parent}{name}.conv_offset",
    "{parent}{name}.conv_offset_mask",
    "{parent}{name}_offset",
    "{parent}conv_offset_mask",
)


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a file of PyTorch parameters.

    Args:
      path: A `.safetensors` file, which is read without torch, or what `torch.save` wrote, with it.
        A checkpoint may hold more than parameters, which are then under `state_dict` or `model`.

    Returns:
      Arrays by their PyTorch names. Those in bfloat16 become float32.

    Raises:
      ImportError: if the package that reads such files is not installed.
      ValueError: if there are no parameters in the file, or anything that is not plain data, which
        could run code as it is read.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickled(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Its NumPy reader knows no bfloat16.
        from safetensors.flax import load_file
    except ImportError as error:
        raise ImportError(f"Reading {path} needs the package safetensors.") from error
    return {name: _as_numpy(array) for name, array in load_file(path).items()}


def _read_pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs torch. Install it, or save the parameters as .safetensors."
        ) from error
    import pickle

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers and names. If you trust its source, load it "
            "with torch.load(..., weights_only=False) and save its parameters as .safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a state dict.")
    tensors = {k: v for k, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no parameters, only {sorted(map(str, checkpoint))}.")
    wide = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
    return {name: tensor.numpy() for name, tensor in wide.items()}


def _as_numpy(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype("float32") if array.dtype == "bfloat16" else array)


def to_flax(
    weights: Mapping[str, np.ndarray],
    like: Any,
    *,
    prefix: str = "",
    leave: Collection[str] = (),
    strict: bool = True,
) -> Any:
    """Arranges PyTorch parameters as the variables of a Flax network.

    A variable is found by its path: `layer1/0/bn1/scale` (in Linen `layer1_0/bn1/scale`) is
    `layer1.0.bn1.weight`. Axes are reordered. The branch `offset_conv` of a deformable layer is
    found in the layers of mmcv, of the original repository, and in networks of mmdetection, old and
    new, and of detectron2; their channel order is ours.

    Args:
      weights: Arrays by their PyTorch names, see `read_state_dict`.
      like: The network's variables: `nnx.state(model)`, or what Linen's `init` returns. Those
        without a counterpart in PyTorch (counters, random streams) keep their values.
      prefix: What the names of this network begin with in `weights`, `"backbone."` in detectors of
        mmdetection, `"module."` for a network saved in parallel. Other names are not looked at.
      leave: Names of modules to leave as they are in `like`, and to ignore in `weights`: `["fc"]`
        for other classes, `["offset_conv"]` to make an ordinary network deformable.
      strict: Whether all variables must be found, and all of `weights` used.

    Returns:
      What `like` is, with the values of `weights` as NumPy arrays in the dtypes of `like`.

    Raises:
      ValueError: if shapes differ, or, if `strict`, parameters are missing or left over; the
        message lists all of them.

    Note:
      Only names and shapes are compared. A network of the same shapes that computes something else,
      like those that Caffe trained, with strides in the first convolution of a block, is not told
      apart.

    Examples:
      >>> import numpy as np
      >>> like = {"params": {"conv": {"kernel": np.zeros((3, 3, 8, 16)), "bias": np.zeros(16)}}}
      >>> weights = {"conv.weight": np.ones((16, 8, 3, 3)), "conv.bias": np.ones(16)}
      >>> to_flax(weights, like)["params"]["conv"]["kernel"].shape
      (3, 3, 8, 16)
    """
    weights = {
        name.removeprefix(prefix): array
        for name, array in weights.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
    weights = {
        name: array for name, array in weights.items() if not set(name.split(".")) & set(leave)
    }
    conversion = _Conversion(weights, leave)
    converted = jax.tree_util.tree_map_with_path(conversion.variable, like)
    conversion.check(strict)
    return converted


@dataclasses.dataclass
class _Conversion:
    """One pass over the variables of a network, and what did not fit."""

    weights: Mapping[str, np.ndarray]
    leave: Collection[str]
    used: set[str] = dataclasses.field(default_factory=set)
    missing: list[list[str]] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)

    def variable(self, path: tuple[Any, ...], value: Any) -> Any:
        """What the variable at `path`, with the shape of `value`, is in `weights`."""
        modules, leaf = _modules_and_leaf(path)
        if leaf not in _LEAVES or set(modules) & set(self.leave):
            return value
        names = [f"{module}{_LEAVES[leaf]}" for module in _torch_modules(modules)]
        name = next((name for name in names if name in self.weights), None)
        if name is None:
            self.missing.append(names)
            return value
        self.used.add(name)
        array, axes = self.weights[name], _torch_axes(np.ndim(value))
        expected = tuple(np.shape(value)[axis] for axis in axes)
        if array.shape != expected:
            self.misshapen.append(f"{name}: expected {expected}, got {array.shape}")
            return value
        return np.transpose(array, np.argsort(axes)).astype(value.dtype)

    def check(self, strict: bool) -> None:
        """Raises one error that lists all that is wrong."""
        problems = {"misshapen": self.misshapen}
        if strict:
            missing = [" or ".join(names) for names in self.missing]
            unexpected = sorted(set(self.weights) - self.used)
            problems = {"missing": missing, "unexpected": unexpected, **problems}
        lists = [
            f"{len(names)} {kind}:\n  " + "\n  ".join(names)
            for kind, names in problems.items()
            if names
        ]
        if lists:
            hints = self._hints() if strict else []
            raise ValueError("\n".join(["The parameters do not fit the network.", *lists, *hints]))

    def _hints(self) -> list[str]:
        hints = []
        unexpected = set(self.weights) - self.used
        ends = tuple(f".{name}" for names in self.missing for name in names)
        longer = next((name for name in sorted(unexpected) if name.endswith(ends)), None)
        if longer:
            end = max((end for end in ends if longer.endswith(end)), key=len)
            hints.append(f'With prefix="{longer.removesuffix(end[1:])}" more of them may be found.')
        if any(f"{name.removesuffix('bias')}weight" in self.used for name in unexpected):
            hints.append(
                "A layer has a bias here and none in the network: give it one with use_bias=True. "
                "Deformable layers of the original's branch pytorch_1.0.0 add a bias even if they "
                "were made with bias=False."
            )
        return hints


def _modules_and_leaf(path: tuple[Any, ...]) -> tuple[list[str], str]:
    # In the state of an NNX module, the key of an attribute follows those of the path.
    keys = [key for key in path if not isinstance(key, jax.tree_util.GetAttrKey)]
    names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in keys]
    if names[:1] in (["params"], ["batch_stats"]):
        names = names[1:]
    return names[:-1], names[-1]


def _torch_modules(modules: list[str]) -> list[str]:
    """What torch may call a module, to prepend to the names of its parameters."""
    # Linen's name of an item of a list.
    modules = [re.sub(r"_(\d+)$", r".\1", name) for name in modules]
    if modules[-1:] != ["offset_conv"]:
        return [".".join([*modules, ""])]
    if len(modules) == 1:
        return [f"{branch.partition('.')[2]}." for branch in _OFFSET_BRANCHES[:3]]
    *parents, name, _ = modules
    parent = ".".join([*parents, ""])
    return [f"{branch.format(parent=parent, name=name)}." for branch in _OFFSET_BRANCHES]


def _torch_axes(rank: int) -> tuple[int, ...]:
    """The axes of a flax variable in torch's order: `[*kernel, I, O]` as `[O, I, *kernel]`."""
    return (rank - 1, rank - 2, *range(rank - 2)) if rank > 1 else tuple(range(rank))
