# SPDX-License-Identifier: MIT
"""Shows what is installed, and the implementation that each operator would run on here."""

import importlib.metadata
import platform

import jax

from jax_dcn._src.operator import libraries
from jax_dcn._src.operator.implementation import available_implementations, platforms
from jax_dcn._src.public import public
from jax_dcn._src.registry import OPERATORS

_PACKAGES = ("jax_dcn", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "numpy")


@public("jax_dcn")
def show_config() -> None:
    """Prints versions, devices and implementations; `python -m jax_dcn` does the same.

    For each operator and platform it names the implementation that `implementation=None` takes, and,
    where that is not the kernels, why the kernels cannot run.

    Examples:
      >>> import jax_dcn
      >>> jax_dcn.show_config()  # doctest: +ELLIPSIS
      python: ...
    """
    config = _config()
    width = max(map(len, config)) + 1
    print("\n".join(f"{name + ':':{width}} {value}" for name, value in config.items()))


def _config() -> dict[str, str]:
    versions = {name: version(name) for name in _PACKAGES}
    implementations = {
        f"{operator} on {name}": _chosen(operator, name)
        for operator in OPERATORS
        for name in platforms()
    }
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: number for name, number in versions.items() if number},
        "XLA FFI": _runtime_ffi(),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "CPU kernels": libraries.describe("cpu"),
        "CUDA kernels": libraries.describe("cuda"),
        **available_implementations(),
        **implementations,
    }


def _chosen(operator: str, platform: str) -> str:
    """The implementation that `implementation=None` takes, and why the kernels cannot run."""
    reason = OPERATORS[operator].primitive.why_not(platform)
    if reason is not None:
        return f"xla, because {reason}"
    return 'native; "xla" can be asked for'


def _runtime_ffi() -> str:
    spoken = libraries.ffi_version()
    return "of an unknown version" if spoken is None else ".".join(map(str, spoken))


def version(package: str) -> str | None:
    """The version of an installed package; `None` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
