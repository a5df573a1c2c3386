# SPDX-License-Identifier: MIT
"""Loads the compiled kernels, registers them with XLA and says why a platform has none."""

import importlib
import pathlib
import re
import types

import jax
import numpy as np

# JAX's platform name -> (our extension module, XLA's platform name).
_EXTENSIONS = {"cpu": ("jax_dcn._cpu", "cpu"), "cuda": ("jax_dcn._cuda", "CUDA")}

_DTYPES = ("float32", "float64", "bfloat16", "float16")

_extensions: dict[str, types.ModuleType] = {}
_unavailable: dict[str, str] = {}


def why_not(platform: str, dtype: np.dtype | None = None) -> str | None:
    """Why there is no native kernel for `platform` (and `dtype`); `None` where there is one."""
    if platform not in _EXTENSIONS:
        return f"there is no native kernel for {platform}"
    if platform in _unavailable:
        return _unavailable[platform]
    if dtype is not None and np.dtype(dtype).name not in _DTYPES:
        return f"the native kernels compute in {', '.join(_DTYPES)}, not in {np.dtype(dtype).name}"
    return None


def describe(platform: str) -> str:
    """What the kernels of `platform` were built for, or why there are none."""
    if platform in _unavailable:
        return _unavailable[platform]
    extension = _extensions[platform]
    version = ".".join(map(str, extension.FFI_VERSION))
    return f"{extension.DESCRIPTION}, XLA FFI {version}"


def targets() -> list[str]:
    """Names of the custom calls that programs with our kernels contain."""
    return sorted({name for extension in _extensions.values() for name in extension.TARGETS})


def _register(platform: str, module_name: str, xla_platform: str) -> None:
    try:
        extension = importlib.import_module(module_name)
    except ImportError as error:
        _unavailable[platform] = f"jax_dcn was built without {platform} kernels ({error})"
        return
    if reason := _newer_than_runtime(extension.FFI_VERSION):
        _unavailable[platform] = reason
        return
    _extensions[platform] = extension
    for name, capsule in extension.TARGETS.items():
        jax.ffi.register_ffi_target(name, capsule, platform=xla_platform)


def _newer_than_runtime(built: tuple[int, int]) -> str | None:
    """XLA refuses handlers built for a newer interface than its own, one cryptic call at a time."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    found = dict(re.findall(r"XLA_FFI_API_(MAJOR|MINOR)\s+(\d+)", header))
    runtime = int(found["MAJOR"]), int(found["MINOR"])
    if built <= runtime:
        return None
    return (
        f"jax_dcn was built for version {built[0]}.{built[1]} of XLA's extension interface, but the "
        f"installed jaxlib speaks {runtime[0]}.{runtime[1]}; rebuild jax_dcn or upgrade jax"
    )


for _platform, (_module_name, _xla_platform) in _EXTENSIONS.items():
    _register(_platform, _module_name, _xla_platform)
