# SPDX-License-Identifier: MIT
"""The GPUs that JAX uses: whether they can run the CUDA kernels that are installed, and tables of GPUs."""

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

Entry = TypeVar("Entry")

_WITHOUT_A_GPU = 90  # for programs that are compiled for another machine: a guess


def why_not(built: str) -> str | None:
    """Why the GPUs of all processes cannot run kernels; `None` where all can, or without GPUs.

    `built` is the description of the library of kernels: `"CUDA 13.0 for sm_80, sm_90"`.
    """
    toolkit, codes = parsed(built)
    for device in devices():
        code = _code_for(capability(device), codes)
        if code is None:
            return _no_code(device, built)
        reason = _old_driver(toolkit, compiles=code == "PTX")
        if reason is not None:
            return reason
    return None


def parsed(built: str) -> tuple[tuple[int, int], list[str]]:
    """The version of CUDA and the codes, such as `"90"`, in the description of a library."""
    toolkit = re.match(r"CUDA (\d+)\.(\d+) for sm_", built)
    assert toolkit is not None, built
    return (int(toolkit[1]), int(toolkit[2])), re.findall(r"sm_(\w+)", built)


def devices() -> Sequence[Any]:
    """The GPUs that JAX runs programs for CUDA on, in all processes."""
    try:
        return jax.devices("cuda")
    except RuntimeError:
        return ()


def capability(device: Any) -> int:
    """The compute capability of a GPU, 90 for 9.0."""
    major, minor = map(int, device.compute_capability.split("."))
    return 10 * major + minor


def entry(table: Mapping[int, Entry]) -> Entry:
    """The entry of a table by compute capability, for the first GPU of all processes.

    All processes must compile the same program. GPUs in between take the entry of the next older one.
    Without a GPU: the entry of compute capability 9.0.
    """
    here = [capability(device) for device in devices()][:1] or [_WITHOUT_A_GPU]
    return table[max((known for known in table if known <= here[0]), default=min(table))]


def driver() -> tuple[int, int] | None:
    """The newest version of CUDA that the driver of this machine runs; `None` if unknown."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def _code_for(capability: int, codes: Sequence[str]) -> str | None:
    """Which of the `codes` such as `"90"` a GPU runs, or `"PTX"`; `None` where it runs nothing.

    Code runs on GPUs of the same major version and the same or a newer minor version. PTX, which is
    there for the last of the codes, runs on every newer GPU. Code for `"90a"` runs on that GPU alone.
    """
    for code in codes:
        number = int(code.rstrip("af"))
        same = capability == number if code.endswith("a") else capability // 10 == number // 10
        if same and capability >= number:
            return code
    newest = codes[-1]
    return "PTX" if newest.isdecimal() and capability > int(newest) else None


def _no_code(device: Any, built: str) -> str:
    major, minor = device.compute_capability.split(".")
    reason = (
        f"{device.device_kind} has compute capability {major}.{minor}, and the kernels were built "
        f"by {built}"
    )
    if int(major) < 8:
        return f"{reason}; no kernel runs on a GPU older than 8.0"
    return f"{reason}; build jax_dcn with JAX_DCN_CUDA_ARCHITECTURES={major}{minor}"


def _old_driver(toolkit: tuple[int, int], compiles: bool) -> str | None:
    """Why the driver cannot run kernels of a toolkit; `compiles` if it has to compile them first.

    A driver runs kernels of every toolkit of its own major version of CUDA, and of older ones. It
    compiles PTX of toolkits that are not newer than itself.
    """
    spoken = driver()
    if spoken is None or spoken >= (toolkit if compiles else (toolkit[0], 0)):
        return None
    dotted = [".".join(map(str, version)) for version in (spoken, toolkit)]
    return (
        f"the driver of the GPU runs CUDA {dotted[0]}, and the kernels were built by CUDA {dotted[1]}; "
        "update the driver, or install the kernels for its version of CUDA"
    )
