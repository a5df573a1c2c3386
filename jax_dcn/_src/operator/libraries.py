# SPDX-License-Identifier: MIT
"""Loads the compiled kernels, registers them with XLA, and says why a platform has none."""

import importlib
import importlib.metadata
import os
import pathlib
import re
import sys
import types
import warnings

import jax
import jaxlib.version

from jax_dcn._src.operator import gpus

# JAX's platform name -> XLA's platform name.
_PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}

_HOW_TO_GET = {
    "cpu": "reinstall it from a wheel, or from source where there is a C++ compiler",
    "cuda": 'install "jax-dcn[cuda13]" or "jax-dcn[cuda12]", or build jax-dcn where nvcc is',
}

_CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")

_extensions: dict[str, types.ModuleType] = {}
_unavailable: dict[str, str] = {}


def why_not(platform: str, target: str | None = None) -> str | None:
    """Why programs for `platform` cannot call native kernels; `None` where they can.

    `target` asks for one kernel, by the name of its custom call.
    """
    if platform not in _PLATFORMS:
        return f"there is no native kernel for {platform}"
    if platform in _unavailable:
        return _unavailable[platform]
    if target is not None and target not in _extensions[platform].TARGETS:
        return f"the library of {platform} kernels has none for it"
    return _of_gpus(_extensions[platform].DESCRIPTION) if platform == "cuda" else None


def describe(platform: str) -> str:
    """The machine that the kernels of `platform` were built for, or why there are none."""
    if platform in _unavailable:
        return _unavailable[platform]
    extension = _extensions[platform]
    return f"{extension.DESCRIPTION}, built for XLA FFI {_dotted(extension.FFI_VERSION)}"


def ffi_version() -> tuple[int, int] | None:
    """The version of XLA's extension interface that the installed jaxlib speaks; `None` if unknown."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    if not header.exists():
        return None
    found = dict(re.findall(r"XLA_FFI_API_(MAJOR|MINOR)\s+(\d+)", header.read_text()))
    return int(found["MAJOR"]), int(found["MINOR"])


def targets() -> list[str]:
    """Names of the custom calls in programs that call native kernels."""
    return sorted({name for extension in _extensions.values() for name in extension.TARGETS})


def _register(platform: str) -> None:
    try:
        extension = _import_first(_modules(platform))
    except ImportError as error:
        _unavailable[platform] = (
            f"jax_dcn was built without {platform} kernels ({error}); {_how_to_get(platform)}"
        )
        return
    reason = (
        _of_another_version(extension)
        or _newer_than_runtime(extension.FFI_VERSION)
        or _out_of_step(platform)
    )
    if reason:
        _unavailable[platform] = reason
        return
    _extensions[platform] = extension
    for name, capsule in extension.TARGETS.items():
        jax.ffi.register_ffi_target(name, capsule, platform=_PLATFORMS[platform])


def _modules(platform: str) -> list[str]:
    """The modules that may hold the kernels: built with the package, or in a wheel of their own.

    The wheel for CUDA is the wheel for the CUDA version of JAX's plugin.
    """
    modules = [f"jax_dcn._{platform}"]
    if platform == "cuda":
        modules += [
            f"jax_dcn_{plugin.split('-')[1]}._cuda" for plugin in _plugins() or _CUDA_PLUGINS
        ]
    return modules


def _import_first(modules: list[str]) -> types.ModuleType:
    """The first module that is installed; raises `ImportError` if the module does not load."""
    missing = []
    for module in modules:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing.append(error)
    raise missing[0]


def _how_to_get(platform: str) -> str:
    if sys.platform not in ("linux", "darwin"):
        return "there are kernels for Linux and macOS only"
    sources = pathlib.Path(__file__).parents[3]
    if platform == "cpu" and (sources / "CMakeLists.txt").exists():
        # Python looks in the working directory first, where there are no kernels.
        return f"{sources} holds its sources: start Python elsewhere, or pip install -e {sources}"
    return _HOW_TO_GET[platform]


def _of_another_version(extension: types.ModuleType) -> str | None:
    """Why a wheel of kernels of another version cannot be used."""
    kernels, package = extension.__name__.split(".")[0].replace("_", "-"), "jax-dcn"
    if kernels == package:
        return None
    try:
        versions = [importlib.metadata.version(name) for name in (kernels, package)]
    except importlib.metadata.PackageNotFoundError as error:
        return f"{kernels} and {package} have versions that cannot be compared: {error}"
    if versions[0] == versions[1]:
        return None
    return (
        f"{kernels} {versions[0]} and {package} {versions[1]} are out of step; "
        f"pip install {kernels}=={versions[1]}"
    )


def _newer_than_runtime(built: tuple[int, int]) -> str | None:
    """XLA refuses handlers built for a newer interface than its own, one cryptic call at a time."""
    runtime = ffi_version()
    if runtime is None or built <= runtime:
        return None
    return (
        f"jax_dcn was built for version {_dotted(built)} of XLA's extension interface, but the "
        f"installed jaxlib speaks {_dotted(runtime)}; rebuild jax_dcn or upgrade jax"
    )


def _out_of_step(platform: str) -> str | None:
    """XLA's own sentence for a plugin of another version names neither the plugin nor the remedy."""
    for package, version in _plugins().items() if platform == "cuda" else ():
        if version.split(".")[:2] != jaxlib.version.__version__.split(".")[:2]:
            extra = package.split("-")[1]
            return (
                f"{package} {version} and jaxlib {jaxlib.version.__version__} are out of step; "
                f'pip install "jax[{extra}]=={jax.__version__}"'
            )
    return None


def _plugins() -> dict[str, str]:
    """The installed plugins that bring CUDA to JAX, and their versions."""
    found = {}
    for package in _CUDA_PLUGINS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _of_gpus(built: str) -> str | None:
    reason = gpus.why_not(built)
    if reason is not None:
        _warn("cuda", reason)
    return reason


def _check_instruction_set() -> None:
    """A name is obeyed or refused: results differ in bits between instruction sets."""
    wanted = os.environ.get("JAX_DCN_INSTRUCTION_SET")
    used = _extensions["cpu"].DESCRIPTION if "cpu" in _extensions else None
    if wanted and used and wanted != used:
        raise ValueError(
            f"JAX_DCN_INSTRUCTION_SET={wanted!r} names no kernels that this processor can run: expected "
            f"'baseline', 'avx2', 'avx512' or 'avx512_bf16', up to its own {used!r}; unset the variable "
            "to run the kernels of the processor."
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _warn_of_missing_kernels() -> None:
    """Slow results would be the only sign that kernels are missing which this machine could use."""
    for platform, expected in (("cpu", True), ("cuda", bool(_plugins()))):
        if expected and platform in _unavailable:
            _warn(platform, _unavailable[platform])


def _warn(platform: str, reason: str) -> None:
    message = f"On {platform}, jax_dcn runs on XLA, slowly: {reason}."
    warnings.warn(message, RuntimeWarning, stacklevel=1)


for _platform in _PLATFORMS:
    _register(_platform)
_check_instruction_set()
_warn_of_missing_kernels()
