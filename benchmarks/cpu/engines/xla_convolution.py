# SPDX-License-Identifier: MIT
"""XLA's ordinary convolution of the same shape."""

import jax
import jax.numpy as jnp

from benchmarks.cpu.engines import Task, Unsupported
from benchmarks.cpu.engines.jax_dcn import jax_task, with_gradients


def version() -> str:
    return jax.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    x, kernel, _, _, bias = (None if a is None else jnp.asarray(a, dtype) for a in case.arrays())

    def convolve(x, kernel, bias):
        return case.ordinary_convolution(x, kernel) + bias

    if mode == "forward":
        return jax_task(jax.jit(lambda *arrays: (convolve(*arrays),)), (x, kernel, bias))
    if mode == "training":
        grad_y = jnp.asarray(case.cotangent(), dtype)
        return jax_task(with_gradients(convolve), (grad_y, x, kernel, bias))
    raise Unsupported(mode)
