# SPDX-License-Identifier: MIT
"""Checks every implementation of every operator on this machine's devices, in about ten seconds."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.operator.implementation import platform_of
from jax_dcn._src.operator.problem import KnownResult, Problem
from jax_dcn._src.registry import OPERATORS

# Problems are small, so that sums have few terms and errors are small multiples of rounding errors. A
# wrong sample, tap or gradient makes an error as large as the result.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


# XLA takes nearly all the time, to compile programs that run once: it need not optimise them. The
# kernels are compiled ahead, and run as always.
@functools.partial(
    jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0}
)
def _value_and_gradients(
    function: Callable[..., jax.Array], implementation: str, *arrays: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    y, pullback = jax.vjp(functools.partial(function, implementation=implementation), *arrays)
    weights = (1 + jnp.arange(y.size) % 3).reshape(y.shape)  # exact in every dtype
    return y, pullback(weights.astype(y.dtype))


def _results(
    problem: Problem, device: jax.Device, implementation: str, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The value and all gradients, computed on `device`."""
    value, grads = _value_and_gradients(
        problem.function, implementation, *jax.device_put(tuple(arrays), device)
    )
    return [np.asarray(result, np.float32) for result in (value, *grads)]


def selfcheck() -> bool:
    """Prints a line for each check, and returns whether all checks that could run have passed.

    Values and gradients on each device, in each dtype, are compared with the `"xla"` implementation
    on CPU in float32. Where a result is known from XLA's own operators, the `"xla"` implementation is
    compared with it. A check that cannot run says why, and does not fail.
    """
    passed = True
    for name, operator in OPERATORS.items():
        if known := operator.problem.known:
            error_of_xla = _error_of_known(operator.problem.function, known)
            passed &= _report(f"{name} xla, cpu: {known.title}", error_of_xla, "float32")
    checks = itertools.product(_TOLERANCE, _devices(), OPERATORS)
    # XLA compiles each small program on one thread, and compiling takes nearly all the time.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for outcomes in threads.map(_check, *zip(*checks, strict=True)):
            for title, error, dtype in outcomes:
                passed &= _report(title, error, dtype)
    print("Everything that can run here is right." if passed else "Something is wrong.")
    return passed


def _check(dtype: str, device: jax.Device, name: str) -> list[tuple[str, float | str, str]]:
    """For each implementation to be judged: title, error or why it cannot run, and dtype."""
    platform, operator = platform_of(device), OPERATORS[name]
    primitive, problem = operator.primitive, operator.problem
    error: float | str | None = primitive.why_not(platform)
    if error is None:
        error = _error(problem, device, np.dtype(dtype), "native")
    outcomes = [(f"{name} native, {platform}, {dtype}", error, dtype)]
    if platform != "cpu" or dtype != "float32":  # on CPU in float32, "xla" is the judge
        error = _error(problem, device, np.dtype(dtype), "xla")
        outcomes.append((f"{name} xla, {platform}, {dtype}", error, dtype))
    return outcomes


def _report(title: str, error: float | str, dtype: str) -> bool:
    if isinstance(error, str):
        print(f"{title}: not run: {error}")
        return True
    passed = error <= _TOLERANCE[dtype]  # not where the error is NaN
    print(f"{title}: {'ok' if passed else 'WRONG'} (error {error:.1e})")
    return passed


def _error(problem: Problem, device: jax.Device, dtype: np.dtype, implementation: str) -> float:
    """The largest error of values and gradients, relative to the largest entry of each array."""
    arrays = problem.arrays(dtype)
    actual = _results(problem, device, implementation, arrays)
    expected = _judge(problem, [array.astype(np.float32) for array in arrays])
    errors = [_relative(a, e) for a, e in zip(actual, expected, strict=True)]
    return float(np.max(errors))  # NaN if one is NaN


def _judge(problem: Problem, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return _results(problem, jax.devices("cpu")[0], "xla", arrays)


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def _error_of_known(function: Callable[..., jax.Array], known: KnownResult) -> float:
    with jax.default_device(jax.devices("cpu")[0]):
        y = function(*known.arrays(), implementation="xla")
        return _relative(np.asarray(y), known.result())


def _devices() -> list[jax.Device]:
    """One device of each platform."""
    devices = {platform_of(device): device for device in (*jax.devices("cpu"), *jax.devices())}
    return list(devices.values())
