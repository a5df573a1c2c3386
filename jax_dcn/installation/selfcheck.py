# SPDX-License-Identifier: MIT
"""Checks every implementation of every operator on this machine's devices, in about ten seconds."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.operator import libraries
from jax_dcn._src.operator.implementation import platform_of
from jax_dcn._src.registry import OPERATORS

# Problems are small, so that sums have few terms: errors are multiples of rounding. A wrong sample,
# tap or gradient is an error of the size of the result.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operator with its options, and what to call it with.

    Attributes:
      function: Of the arrays, and of the keyword `implementation`.
      arrays: `(dtype)` to the arrays.
    """

    function: Callable[..., jax.Array]
    arrays: Callable[[np.dtype], tuple[np.ndarray, ...]]

    def results(
        self, device: jax.Device, implementation: str, arrays: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The value and all gradients, computed on `device`."""
        value, grads = _value_and_gradients(
            self.function, implementation, *jax.device_put(tuple(arrays), device)
        )
        return [np.asarray(result, np.float32) for result in (value, *grads)]


# Nearly all the time is XLA's, to compile programs that run once: it need not optimise them. The
# kernels, which are compiled ahead, are as they always are.
@functools.partial(
    jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0}
)
def _value_and_gradients(
    function: Callable[..., jax.Array], implementation: str, *arrays: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    y, pullback = jax.vjp(functools.partial(function, implementation=implementation), *arrays)
    weights = (1 + jnp.arange(y.size) % 3).reshape(y.shape)  # exact in every dtype
    return y, pullback(weights.astype(y.dtype))


def selfcheck() -> bool:
    """Prints a line for each check; whether all that could run have passed.

    Values and gradients on each device, in each dtype, against the `"xla"` implementation on CPU in
    float32, which is itself checked against XLA's own operators. What cannot run says why, and does
    not fail.
    """
    passed = _report("deform_conv2d xla, cpu: zero offsets", _error_of_zero_offsets(), "float32")
    checks = itertools.product(_TOLERANCE, _devices(), PROBLEMS)
    # XLA compiles small programs on one thread each, and that takes nearly all the time.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for outcomes in threads.map(_check, *zip(*checks, strict=True)):
            for title, error, dtype in outcomes:
                passed &= _report(title, error, dtype)
    print("Everything that can run here is right." if passed else "Something is wrong.")
    return passed


def _check(dtype: str, device: jax.Device, name: str) -> list[tuple[str, float | str, str]]:
    """Title, error or why it was not run, and dtype, for each implementation to be judged."""
    platform, problem = platform_of(device), PROBLEMS[name]
    error: float | str | None = libraries.why_not(platform, np.dtype(dtype))
    if not error and not libraries.has_kernel(platform, name):
        error = "there is no kernel"
    error = error or _error(problem, device, np.dtype(dtype), "native")
    outcomes = [(f"{name} native, {platform}, {dtype}", error, dtype)]
    if platform != "cpu" or dtype != "float32":  # that is the judge
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
    actual = problem.results(device, implementation, arrays)
    expected = _judge(problem, [array.astype(np.float32) for array in arrays])
    return max(_relative(a, e) for a, e in zip(actual, expected, strict=True))


def _judge(problem: Problem, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return problem.results(jax.devices("cpu")[0], "xla", arrays)


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def _error_of_zero_offsets() -> float:
    x, kernel, offset, mask, bias = _deform_conv2d_arrays(np.dtype("float32"))
    arrays = x, kernel, np.zeros_like(offset), np.ones_like(mask), bias
    y, *_ = _judge(PROBLEMS["deform_conv2d"], arrays)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = jax.lax.conv_general_dilated(
            jnp.asarray(x),
            jnp.asarray(kernel),
            (2, 1),
            ((1, 2), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
            precision="highest",
        )
    return _relative(y, np.asarray(expected) + bias)


def _devices() -> list[jax.Device]:
    """One device of each platform."""
    devices = {platform_of(device): device for device in (*jax.devices("cpu"), *jax.devices())}
    return list(devices.values())


# ---------------------------------------------------------------------------------------- problems


def _draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _draw_mask(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def _deform_conv2d(*arrays: jax.Array, implementation: str) -> jax.Array:
    return OPERATORS["deform_conv2d"](
        *arrays,
        strides=(2, 1),
        padding=((1, 2), (0, 1)),
        feature_group_count=2,
        precision="highest",
        implementation=implementation,
    )


def _deform_conv2d_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    x, kernel, bias = _draw(0, 2, 9, 7, 12), _draw(1, 3, 2, 6, 10) / 6, _draw(4, 10)
    # Offset and mask may be wider than the image, and are: rounded, they would sample elsewhere.
    offset, mask = _draw(2, 2, 5, 7, 3, 6, 2), _draw_mask(3, 2, 5, 7, 3, 6)
    return x.astype(dtype), kernel.astype(dtype), offset, mask, bias.astype(dtype)


def _deform_roi_pool(*arrays: jax.Array, implementation: str) -> jax.Array:
    return OPERATORS["deform_roi_pool"](
        arrays[0],
        jnp.asarray(_ROIS),
        *arrays[1:],
        spatial_scale=0.5,
        pooled_size=3,
        output_dim=4,
        group_size=2,
        trans_std=0.1,
        implementation=implementation,
    )


def _deform_roi_align(*arrays: jax.Array, implementation: str) -> jax.Array:
    return OPERATORS["deform_roi_align"](
        arrays[0],
        jnp.asarray(_ROIS),
        *arrays[1:],
        spatial_scale=0.5,
        pooled_size=3,
        implementation=implementation,
    )


def _roi_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    offset, mask = _draw(1, 3, 3, 3, 1, 2), _draw_mask(2, 3, 3, 3)
    return _draw(0, 2, 9, 11, 16).astype(dtype), offset, mask


_ROIS = np.array([[1, 0, 2, 13, 11], [0, 4, 3, 20, 17], [1, -3, -5, 8, 9]], np.float32)

# A line for each operator of the registry.
PROBLEMS = {
    "deform_conv2d": Problem(_deform_conv2d, _deform_conv2d_arrays),
    "deform_roi_align": Problem(_deform_roi_align, _roi_arrays),
    "deform_roi_pool": Problem(_deform_roi_pool, _roi_arrays),
}
