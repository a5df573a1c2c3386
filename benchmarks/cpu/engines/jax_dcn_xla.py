# SPDX-License-Identifier: MIT
"""This library's plain JAX implementation, as XLA compiles it."""

from benchmarks.cpu.engines import Task, jax_dcn

version = jax_dcn.version


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    return jax_dcn.jax_task(*jax_dcn.function_and_arrays(case, mode, dtype, "xla"))
