# SPDX-License-Identifier: MIT
"""Reads files of PyTorch parameters."""

import argparse
import codecs
import contextlib
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_dcn._src.arguments import text

# Dtypes of `.safetensors` whose names do not say the dtype of NumPy.
_SAFETENSORS: dict[str, Any] = {
    "BOOL": np.bool_,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
    "F8_E8M0": jnp.float8_e8m0fnu,
}
_NARROW = re.compile("bfloat16|float8_.*")

_LFS_POINTER = b"version https://git-lfs"
_MARKUP = (b"<!doctype", b"<html", b"<?xml")


def read_state_dict(path: str | pathlib.Path, *, key: str | None = None) -> dict[str, np.ndarray]:
    """Reads a file of PyTorch parameters.

    Args:
      path: A `.safetensors` or `.npz` file (torch is not needed), a file written by `torch.save`
        (torch is needed), or the `.index.json` of a network in several such files.
      key: The entry of the file that holds the parameters, for example `"params_ema"`;
        `"model.ema"` is the entry `ema` of the entry `model`. `None` finds the one entry, at any
        depth, that holds parameters: tensors of floating point that have axes, under names. Other
        tensors beside the entry, and the states of optimizers, are ignored. No entry is preferred to
        another. Without such an entry, or with names such as `conv1.weight` beside the entries, the
        tensors of the file itself are the parameters.

    Returns:
      Arrays by their PyTorch names. bfloat16 and floating point of 8 bits become float32.

    Raises:
      ImportError: if the package that reads the file is not installed.
      FileNotFoundError: if there is no file at `path`.
      ValueError: if the file is damaged or of another kind; if it holds no parameters, several sets of
        parameters and no `key`, no entry `key`, or Python objects (reading them could run code).
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the path of a file, got {path!r}.")
    if key is not None:
        text("key", key)
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be the path of a file, but there is no file {path}.")
    _check_start(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        return _read_pickled(path, key)
    if key is not None:
        raise ValueError(
            f"key={key!r} has no effect: a {path.suffix} file has no entries to choose."
        )
    return read(path)


def _check_start(path: pathlib.Path) -> None:
    """Refuses files that a download or a clone left without their content."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty.")
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path} is a pointer of Git LFS, without the parameters: fetch them with `git lfs pull`."
        )
    if start.lstrip().lower().startswith(_MARKUP):
        raise ValueError(
            f"{path} is a web page, not the file itself: it begins with {start[:20]!r}."
        )


def as_array(name: str, value: Any) -> np.ndarray:
    """A NumPy array of an array or a tensor of torch; dtypes that NumPy lacks become float32."""
    if hasattr(value, "detach"):  # A tensor of torch, which may require gradients.
        known = ("torch.float16", "torch.float32", "torch.float64")
        if value.is_floating_point() and str(value.dtype) not in known:
            value = value.float()
        try:
            return value.detach().cpu().numpy()
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"{name} must be a dense tensor of numbers: {error}") from error
    array = np.asarray(value)
    return array.astype(np.float32) if _NARROW.fullmatch(array.dtype.name) else array


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(f"Reading {path} needs the package safetensors.") from error
    # The package's reader for NumPy does not know bfloat16; its reader for JAX narrows float64.
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no .safetensors file: {error}.") from error
    return {
        name: as_array(name, np.frombuffer(e["data"], _dtype(name, e["dtype"])).reshape(e["shape"]))
        for name, e in entries
    }


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: as_array(name, arrays[name]) for name in arrays}
    except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no .npz file of numbers: {error}") from error


def _read_index(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters of a network that is split over several files beside `path`."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        paths = {file: path.parent / file for file in sorted(set(files.values()))}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has no weight_map, which says in which file a parameter is."
        ) from error
    shards = {file: read_state_dict(shard) for file, shard in paths.items()}
    for name, file in files.items():
        if name not in shards[file]:
            raise ValueError(f"{path} says that {name} is in {file}, which does not hold it.")
    return {name: shards[file][name] for name, file in files.items()}


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".json": _read_index}


def _dtype(tensor: str, name: str) -> np.dtype:
    """The dtype of a name in a `.safetensors` file, for example `F32`."""
    if name in _SAFETENSORS:
        return np.dtype(_SAFETENSORS[name])
    if re.fullmatch(r"[IUFC](8|16|32|64)", name) is None:
        raise ValueError(
            f"{tensor} has the dtype {name}, which has no array: save the tensor in another dtype."
        )
    return np.dtype(f"{name[0].lower()}{int(name[1:]) // 8}")


def _read_pickled(path: pathlib.Path, key: str | None) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs torch. Install it, or save the parameters as .safetensors."
        ) from error
    try:
        with _plain_objects(torch):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers and names, or is no file of torch.save. If you "
            "trust its source, load it with torch.load(..., weights_only=False), where the program "
            "that wrote it is installed, and save its parameters as .safetensors."
        ) from error
    except (EOFError, RuntimeError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a program of TorchScript. If you trust its source, save its parameters, "
                "torch.jit.load(path).state_dict(), with torch.save."
            ) from error
        reason = str(error).split(". ")[0]
        raise ValueError(f"{path} is damaged, or no file of torch.save: {reason}.") from error
    entry, keys = (checkpoint, []) if key is None else (_entry(checkpoint, key, path), [key])
    found = _parameters(entry, path, *keys)
    return {name: as_array(name, tensor) for name, tensor in found.items()}


def _plain_objects(torch: Any) -> contextlib.AbstractContextManager[None]:
    """Lets `torch.load` read what training programs store beside parameters.

    These are options (`argparse.Namespace`, in checkpoints of DETR and its successors) and numbers and
    arrays of NumPy. Reading them runs no code.
    """
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        return contextlib.nullcontext()
    scalar, array = (value.__reduce__()[0] for value in (np.float64(0), np.zeros(0)))
    # The names of these functions before and since NumPy 2.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [(f, f"{m}.{getattr(f, '__name__')}") for m in modules for f in (scalar, array)]  # noqa: B009
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    others = [argparse.Namespace, np.ndarray, np.dtype, codecs.encode]
    return torch.serialization.safe_globals([*functions, *dtypes, *others])


def _entry(checkpoint: Any, key: str, path: pathlib.Path) -> Any:
    """The entry `key` of a checkpoint."""
    entry = checkpoint
    for name in [key] if isinstance(checkpoint, Mapping) and key in checkpoint else key.split("."):
        if not isinstance(entry, Mapping) or name not in entry:
            names = sorted(map(str, entry)) if isinstance(entry, Mapping) else "no entries"
            raise ValueError(f"{path} has no entry {key!r}: {name!r} is not one of {names}.")
        entry = entry[name]
    return entry


def _parameters(checkpoint: Any, path: pathlib.Path, *keys: str) -> Mapping[str, Any]:
    """The one set of parameters in the entry `keys` of a checkpoint."""
    where = f"key={'.'.join(keys)!r} of {path}" if keys else str(path)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{where} holds a {type(checkpoint).__name__}, expected a state dict.")
    tensors = _tensors(checkpoint)
    if any(map(_is_name_of_parameter, tensors)):
        return tensors
    sets = [k for k, v in checkpoint.items() if isinstance(k, str) and _holds_parameters(v)]
    if len(sets) > 1:
        names = [".".join([*keys, name]) for name in sets]
        raise ValueError(
            f"{where} holds several sets of parameters: choose one of {sorted(names)} with key=, "
            f"for example key={names[0]!r}."
        )
    if sets:
        return _parameters(checkpoint[sets[0]], path, *keys, sets[0])
    if tensors:
        return tensors
    raise ValueError(f"{where} holds no parameters, only {sorted(map(str, checkpoint))}.")


def _is_name_of_parameter(name: str) -> bool:
    return "." in name or name in ("weight", "bias")


def _holds_parameters(value: Any) -> bool:
    """Whether `value` is a mapping with parameters under names, directly or deeper.

    Scores and random states, which training programs store, are no parameters.
    """
    if not isinstance(value, Mapping) or "param_groups" in value:  # which an optimizer has
        return False
    # The numbers that name entries of an optimizer's state name no parameters.
    named = [entry for name, entry in value.items() if isinstance(name, str)]
    return any(map(_is_parameter, named)) or any(map(_holds_parameters, named))


def _tensors(entries: Mapping[Any, Any]) -> dict[str, Any]:
    return {k: v for k, v in entries.items() if isinstance(k, str) and _is_tensor(v)}


def _is_parameter(value: Any) -> bool:
    """Whether `value` is a tensor of floating point that has axes."""
    if not _is_tensor(value) or value.ndim == 0:
        return False
    is_torch = hasattr(value, "is_floating_point")
    return value.is_floating_point() if is_torch else np.issubdtype(value.dtype, np.floating)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") or isinstance(value, np.ndarray)
