# SPDX-License-Identifier: MIT
"""This library's `ms_deform_attn` in plain JAX, as XLA compiles it."""

from benchmarks.attention.engines import jax_dcn
from benchmarks.cpu.engines import Task

version = jax_dcn.version


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    return jax_dcn.task(jax_dcn.attention(case, "xla"), case, mode, dtype)
