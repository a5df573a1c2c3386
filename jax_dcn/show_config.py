# SPDX-License-Identifier: MIT
"""What is installed, and what each operator would run on here."""

import importlib.metadata
import platform

import jax

from jax_dcn import _native
from jax_dcn.implementation import available_implementations

_PACKAGES = ("jax_dcn", "jax", "jaxlib", "flax", "numpy")


def show_config() -> None:
    """Prints versions, devices and implementations; `python -m jax_dcn` does the same."""
    print("\n".join(f"{name + ':':16}{value}" for name, value in _config().items()))


def _config() -> dict[str, str]:
    implementations = {f"  {name}": reason for name, reason in available_implementations().items()}
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in _PACKAGES},
        "devices": ", ".join(str(device) for device in jax.devices()),
        "CPU kernels": _native.describe("cpu"),
        "CUDA kernels": _native.describe("cuda"),
        "operators": "the first that can run of:",
        **implementations,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
