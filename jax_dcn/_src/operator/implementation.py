# SPDX-License-Identifier: MIT
"""The names of the implementations, and which of them can run here."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax import export

from jax_dcn._src.arguments import is_sequence
from jax_dcn._src.operator import libraries
from jax_dcn._src.public import public

NAMES = ("native", "xla")

Name = Literal["native", "xla"]
Implementation = Name | Sequence[Name] | None
"""`"native"`, `"xla"`, a sequence of these to try in order, or `None` for the best that can run."""

export_disabled_checks = tuple(
    export.DisabledSafetyCheck.custom_call(name) for name in libraries.targets()
)
"""For `jax.export.export(..., disabled_checks=jax_dcn.export_disabled_checks)`.

JAX refuses to export a custom call unless it knows that the call will stay the same, since a saved
program may run years later. A program with native kernels runs where this version of `jax_dcn` is
imported. A program with `implementation="xla"` needs no exception.
"""


def implementation_names(implementation: Implementation) -> tuple[str, ...]:
    """The names to try in order for a user's `implementation`."""
    if implementation is None:
        return NAMES
    names: Any = (implementation,) if isinstance(implementation, str) else implementation
    if (
        not is_sequence(names)
        or not len(names)
        or not all(isinstance(name, str) and name in NAMES for name in names)
    ):
        raise ValueError(
            f"implementation must be None, one of {NAMES} or a sequence of them, "
            f"got {implementation!r}."
        )
    return tuple(names)


@public("jax_dcn")
def available_implementations() -> dict[str, str]:
    """Which implementations can run on this machine's devices: a sentence for each."""
    native = "; ".join(
        f"{platform}: {libraries.why_not(platform) or 'available'}" for platform in platforms()
    )
    return {"native": native, "xla": "available on every platform"}


def platforms() -> list[str]:
    """The platforms of this machine's devices, as programs are lowered for them."""
    return sorted({platform_of(device) for device in jax.devices()} | {"cpu"})


def platform_of(device: jax.Device) -> str:
    """The platform that programs for `device` are lowered for."""
    # JAX calls every GPU "gpu"; the platform that programs are lowered for is more exact.
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
