# SPDX-License-Identifier: MIT
"""Both sides of a conversion: the tensors of PyTorch, and the variables of Flax with their paths."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn.interop._torch_files import as_array
from jax_dcn.interop._torch_names import LEAVES

# Linen's collections of parameters and statistics.
_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of a Flax network.

    Attributes:
      modules: Names of the modules around the variable, outermost first.
      leaf: Name of the variable in the innermost module.
      value: An array, or its shape and dtype.
      is_parameter: Whether PyTorch has a counterpart: not for counters and random streams.
      module, parent: The innermost module itself and the one around it, if the network was given as an
        NNX model.
    """

    modules: tuple[str, ...]
    leaf: str
    value: Any
    is_parameter: bool
    module: Any = None
    parent: Any = None

    @property
    def path(self) -> str:
        return ".".join([*self.modules, self.leaf])


def variables_of(like: Any) -> tuple[Any, list[Variable]]:
    """The structure of a network's variables, and the variables in their order."""
    nnx = sys.modules.get("flax.nnx")
    modules: dict[tuple[str, ...], Any] = {}
    if nnx and isinstance(like, nnx.Module):
        modules = {tuple(map(str, path)): module for path, module in nnx.iter_modules(like)}
        like = nnx.state(like)
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    _check_leaves(like, [value for _, value in leaves])
    is_nnx = nnx is not None and isinstance(like, nnx.State)
    names = [_names(path) for path, _ in leaves]
    has_collections = not is_nnx and any(path[0] == "params" for path in names)
    variables = []
    for path, (_, value) in zip(names, leaves, strict=True):
        is_parameter = jnp.issubdtype(value.dtype, jnp.floating)
        if not is_nnx and path[0] in _COLLECTIONS:
            path = path[1:]
        elif has_collections and path[-1] not in LEAVES:
            is_parameter = False
        *outer, leaf = path
        module, parent = modules.get(tuple(outer)), modules.get(tuple(outer[:-1]))
        variables.append(Variable(tuple(outer), leaf, value, is_parameter, module, parent))
    return tree, variables


def _check_leaves(like: Any, leaves: list[Any]) -> None:
    linen = sys.modules.get("flax.linen")
    if linen and isinstance(like, linen.Module):
        raise ValueError(
            f"like must be variables, got the Linen module {type(like).__name__}: give what its "
            "`init` returns, or jax.eval_shape(module.init, key, x)."
        )
    if not leaves or not all(hasattr(value, "dtype") for value in leaves):
        raise ValueError(
            "like must be an NNX model, its state, or Linen's variables, got "
            f"{type(like).__name__} {'with leaves that are no arrays' if leaves else 'without leaves'}."
        )


def arrays_of(
    weights: Any, rename: Mapping[str, str] | Callable[[str], str] | None
) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch network as NumPy arrays, under the names that `rename` gives."""
    if hasattr(weights, "state_dict"):
        raise ValueError(
            f"weights must be parameters by name, got the module {type(weights).__name__}: give "
            "its state_dict()."
        )
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"weights must be parameters by name, got a {type(weights).__name__}: read a file with "
            "read_state_dict."
        )
    arrays: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"weights must be parameters by name, got the name {name!r}.")
        if not hasattr(value, "shape"):
            raise ValueError(
                f"weights[{name!r}] must be an array, got a {type(value).__name__}: give the entry "
                "of the checkpoint that holds parameters."
            )
        if name.endswith("num_batches_tracked"):
            continue
        new = _renamed(name, rename)
        if new in arrays:
            raise ValueError(f"rename gives several parameters the name {new!r}, {name!r} too.")
        arrays[new] = as_array(name, value)
    return arrays


def _renamed(name: str, rename: Mapping[str, str] | Callable[[str], str] | None) -> str:
    if rename is None:
        return name
    if callable(rename):
        new = rename(name)
        if not isinstance(new, str):
            raise ValueError(f"rename must return a name, got {new!r} for {name!r}.")
        return new
    for pattern, replacement in rename.items():
        try:
            name = re.sub(pattern, replacement, name)
        except re.error as error:
            raise ValueError(
                f"rename has the replacement {replacement!r} for {pattern!r}: {error}."
            ) from error
    return name


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    # In the state of an NNX module, the key of an attribute follows the keys of the path.
    keys = [key for key in path if not isinstance(key, jax.tree_util.GetAttrKey)]
    return tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys) or ("",)
