# SPDX-License-Identifier: MIT
"""This library; also the ordinary convolution, as a deformable one that stays on its grid."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_dcn
from benchmarks.cpu.engines import Task

# Programs run on the thread that calls them, as they do in the other engines. By default XLA hands a
# program of more than a single kernel to another thread, which takes up to 0.3 ms: once for a
# network, but here for each convolution.
jax.config.update("jax_cpu_enable_async_dispatch", False)


def version() -> str:
    return jax_dcn.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    return jax_task(*function_and_arrays(case, mode, dtype))


def function_and_arrays(case, mode: str, dtype: str, implementation: str = "native"):
    """What is timed, compiled, and what it is called with."""
    arrays = [jnp.asarray(a, dtype) for a in case.arrays() if a is not None]
    if mode.startswith("ordinary"):
        arrays[2] = jnp.zeros_like(arrays[2])
        if case.modulated:
            arrays[3] = jnp.ones_like(arrays[3])

    def convolve(x, kernel, offset, *rest):
        mask = rest[0] if case.modulated else None
        options = dict(**case.options, implementation=implementation)
        return jax_dcn.deform_conv2d(x, kernel, offset, mask, rest[-1], **options)

    if mode == "jvp":
        return jax.jit(lambda *primals: (jax.jvp(convolve, primals, primals)[1],)), arrays
    if mode.endswith("training"):
        return with_gradients(convolve), [jnp.asarray(case.cotangent(), dtype), *arrays]
    return jax.jit(lambda *arrays: (convolve(*arrays),)), arrays


def with_gradients(convolve):
    """A function of y's cotangent and of the arguments: the result and all gradients."""

    def train(grad_y, *arrays):
        y, vjp = jax.vjp(convolve, *arrays)
        return y, *vjp(grad_y)

    return jax.jit(train)


def jax_task(function, arrays) -> Task:
    jax.block_until_ready(function(*arrays))
    return Task(
        run=lambda: jax.block_until_ready(function(*arrays)),
        results=lambda: [np.asarray(r, np.float32) for r in function(*arrays)[:3]],
    )
