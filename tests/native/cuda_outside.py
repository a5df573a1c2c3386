# SPDX-License-Identifier: MIT
"""A process without sanitizers, in which the references of `cuda_on_host.py` compile and run faster."""

import atexit
import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Callable

import jax
import numpy as np


def outside(function: Callable, *options: object) -> Callable:
    """The function of arrays `function(*options, ...)`, compiled once and run in the other process."""
    return lambda *arrays: _process().submit(_compute, function, options, arrays).result()


@functools.cache
def _process() -> concurrent.futures.Executor:
    os.environ.pop("LD_PRELOAD", None)  # so that the process inherits no sanitizer
    spawn = multiprocessing.get_context("spawn")
    process = concurrent.futures.ProcessPoolExecutor(1, spawn, configure)
    atexit.register(process.shutdown)
    return process


def configure() -> None:
    """Sets the options of JAX, which are the same in both processes."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)


def _compute(function: Callable, options: tuple, arrays: tuple) -> object:
    return jax.tree.map(np.asarray, _compiled(function, *options)(*arrays))


@functools.cache
def _compiled(function: Callable, *options: object) -> Callable:
    return jax.jit(functools.partial(function, *options))
