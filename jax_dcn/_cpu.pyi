# SPDX-License-Identifier: MIT
"""The compiled module that hands the CPU targets to JAX."""

from typing_extensions import CapsuleType

TARGETS: dict[str, CapsuleType]
"""XLA handlers, by the names of their custom calls."""

FFI_VERSION: tuple[int, int]
"""The version of XLA's extension interface that they were built for."""

DESCRIPTION: str
"""What the kernels were compiled for, and which of them run here."""
