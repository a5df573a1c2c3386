# SPDX-License-Identifier: MIT
"""Reads files of PyTorch parameters."""

import os
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_dcn._src.arguments import text

# Keys under which training programs store the parameters of a network.
_CONTAINERS = (
    "state_dict",
    "model",
    "params",
    "params_ema",
    "model_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "net",
    "network",
    "weights",
)

# Dtypes of `.safetensors` whose names do not say the dtype of NumPy.
_SAFETENSORS = {
    "BOOL": np.bool_,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def read_state_dict(path: str | pathlib.Path, *, key: str | None = None) -> dict[str, np.ndarray]:
    """Reads a file of PyTorch parameters.

    Args:
      path: A `.safetensors` file (torch is not needed), or a file written by `torch.save` (torch is
        needed).
      key: The entry of the file that holds the parameters, for example `"params_ema"`;
        `"model.ema"` is the entry `ema` of the entry `model`. `None` finds the entry, if only one
        entry holds parameters.

    Returns:
      Arrays by their PyTorch names. bfloat16 becomes float32.

    Raises:
      ImportError: if the package that reads the file is not installed.
      FileNotFoundError: if there is no file at `path`.
      ValueError: if the file holds no parameters, several sets of parameters and no `key`, no entry
        `key`, or Python objects (reading them could run code).
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the path of a file, got {path!r}.")
    if key is not None:
        text("key", key)
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be the path of a file, but there is no file {path}.")
    if path.suffix != ".safetensors":
        return _read_pickled(path, key)
    if key is not None:
        raise ValueError(
            f"key={key!r} has no effect: a .safetensors file has no entries to choose."
        )
    return _read_safetensors(path)


def as_array(value: Any) -> np.ndarray:
    """A NumPy array of an array or a tensor of torch; dtypes that NumPy lacks become float32."""
    if hasattr(value, "detach"):  # A tensor of torch, which may require gradients.
        value = value.detach().cpu()
        known = ("torch.float16", "torch.float32", "torch.float64")
        if value.is_floating_point() and str(value.dtype) not in known:
            value = value.float()
        return value.numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name in _NARROW else array


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(f"Reading {path} needs the package safetensors.") from error
    # The package's reader for NumPy does not know bfloat16; its reader for JAX narrows float64.
    entries = safetensors.deserialize(path.read_bytes())
    return {
        name: as_array(np.frombuffer(e["data"], _dtype(e["dtype"])).reshape(e["shape"]))
        for name, e in entries
    }


def _dtype(name: str) -> np.dtype:
    """The dtype of a name in a `.safetensors` file, for example `F32`."""
    if name in _SAFETENSORS:
        return np.dtype(_SAFETENSORS[name])
    return np.dtype(f"{name[0].lower()}{int(name[1:]) // 8}")


def _read_pickled(path: pathlib.Path, key: str | None) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs torch. Install it, or save the parameters as .safetensors."
        ) from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers and names. If you trust its source, load it "
            "with torch.load(..., weights_only=False) and save its parameters as .safetensors."
        ) from error
    found = _parameters(checkpoint, str(path)) if key is None else _entry(checkpoint, key, path)
    return {name: as_array(tensor) for name, tensor in _tensors(found).items()}


def _entry(checkpoint: Any, key: str, path: pathlib.Path) -> Mapping[str, Any]:
    """The entry `key` of a checkpoint."""
    entry = checkpoint
    for name in [key] if isinstance(checkpoint, Mapping) and key in checkpoint else key.split("."):
        if not isinstance(entry, Mapping) or name not in entry:
            names = sorted(map(str, entry)) if isinstance(entry, Mapping) else "no entries"
            raise ValueError(f"{path} has no entry {key!r}: {name!r} is not one of {names}.")
        entry = entry[name]
    return _parameters(entry, f"key={key!r} of {path}")


def _parameters(checkpoint: Any, where: str) -> Mapping[str, Any]:
    """The one mapping of names to tensors in a checkpoint."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{where} holds a {type(checkpoint).__name__}, expected a state dict.")
    nested = {k: v for k, v in checkpoint.items() if isinstance(k, str) and _holds_tensors(v)}
    known = {k: v for k, v in nested.items() if k in _CONTAINERS}
    if not known and _tensors(checkpoint):
        return checkpoint
    chosen = known or nested
    if len(chosen) > 1:
        raise ValueError(
            f"{where} holds several sets of parameters: choose one of {sorted(chosen)} with key=, "
            f"for example key={next(iter(chosen))!r}."
        )
    if not chosen:
        raise ValueError(f"{where} holds no parameters, only {sorted(map(str, checkpoint))}.")
    ((name, entry),) = chosen.items()
    return _parameters(entry, f"{name!r} of {where}")


def _holds_tensors(value: Any) -> bool:
    """Whether `value` is a mapping with tensors under names, directly or deeper."""
    if not isinstance(value, Mapping):
        return False
    # The numbers that name entries of an optimizer's state name no parameters.
    named = [entry for name, entry in value.items() if isinstance(name, str)]
    return bool(_tensors(value)) or any(map(_holds_tensors, named))


def _tensors(entries: Mapping[Any, Any]) -> dict[str, Any]:
    return {k: v for k, v in entries.items() if isinstance(k, str) and hasattr(v, "detach")}
