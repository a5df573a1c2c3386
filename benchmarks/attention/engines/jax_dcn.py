# SPDX-License-Identifier: MIT
"""This library's `ms_deform_attn`."""

import functools

import jax
import jax.numpy as jnp

import jax_dcn
from benchmarks.cpu.engines import Task
from benchmarks.cpu.engines.jax_dcn import jax_task, with_gradients


def version() -> str:
    return jax_dcn.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    return task(attention(case, "native"), case, mode, dtype)


def attention(case, implementation: str):
    return functools.partial(
        jax_dcn.ms_deform_attn, spatial_shapes=case.shapes, implementation=implementation
    )


def task(f, case, mode: str, dtype: str) -> Task:
    """Times a function of value, locations and weights; the value has the dtype."""
    value, *samples = map(jnp.asarray, case.arrays())
    arrays = [value.astype(dtype), *samples]
    if mode == "forward":
        return jax_task(jax.jit(lambda *arrays: (f(*arrays),)), arrays)
    return jax_task(with_gradients(f), [jnp.asarray(case.cotangent(), dtype), *arrays])
