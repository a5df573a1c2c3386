# SPDX-License-Identifier: MIT
"""Checks every implementation of every operator on this machine's devices, in about ten seconds."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn import _native, ops
from jax_dcn.implementation import platform_of

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
    arrays: Callable[[jnp.dtype], tuple[jax.Array, ...]]

    def results(self, device: jax.Device, implementation: str, *arrays: jax.Array) -> list:
        """The value and all gradients, computed on `device`."""
        value, grads = _value_and_gradients(
            self.function, implementation, *jax.device_put(arrays, device)
        )
        return [np.asarray(result, np.float32) for result in (value, *grads)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_gradients(function, implementation, *arrays):
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
    for name, problem in PROBLEMS.items():
        for device in _devices():
            for dtype in _TOLERANCE:
                passed &= _check(name, problem, device, jnp.dtype(dtype))
    print("Everything that can run here is right." if passed else "Something is wrong.")
    return passed


def _check(name: str, problem: Problem, device: jax.Device, dtype) -> bool:
    platform = platform_of(device)
    title = f"{name} {{}}, {platform}, {dtype.name}"
    reason = _native.why_not(platform, dtype)
    if reason or not _native.has_kernel(platform, name):
        print(f"{title.format('native')}: not run: {reason or 'there is no kernel'}")
    else:
        error = _error(problem, device, dtype, "native")
        if not _report(title.format("native"), error, dtype.name):
            return False
    if platform == "cpu" and dtype == jnp.float32:
        return True  # the judge
    return _report(title.format("xla"), _error(problem, device, dtype, "xla"), dtype.name)


def _report(title: str, error: float, dtype: str) -> bool:
    passed = error <= _TOLERANCE[dtype]  # not where the error is NaN
    print(f"{title}: {'ok' if passed else 'WRONG'} (error {error:.1e})")
    return passed


def _error(problem: Problem, device: jax.Device, dtype, implementation) -> float:
    """The largest error of values and gradients, relative to the largest entry of each array."""
    arrays = problem.arrays(dtype)
    judge = (array.astype(jnp.float32) for array in arrays)
    expected = problem.results(jax.devices("cpu")[0], "xla", *judge)
    actual = problem.results(device, implementation, *arrays)
    return max(_relative(a, e) for a, e in zip(actual, expected, strict=True))


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def _error_of_zero_offsets() -> float:
    x, kernel, offset, mask, _ = _deform_conv2d_arrays(jnp.dtype("float32"))
    zeros = jnp.zeros_like(offset), jnp.ones_like(mask), jnp.zeros(kernel.shape[-1:], x.dtype)
    with jax.default_device(jax.devices("cpu")[0]):
        y = _deform_conv2d(x, kernel, *zeros, implementation="xla")
        expected = jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            ((1, 2), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
            precision="highest",
        )
    return _relative(np.asarray(y), np.asarray(expected))


def _devices() -> list[jax.Device]:
    """One device of each platform."""
    devices = {platform_of(device): device for device in (*jax.devices("cpu"), *jax.devices())}
    return list(devices.values())


# ---------------------------------------------------------------------------------------- problems


def _draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _deform_conv2d(*arrays, implementation):
    return ops.deform_conv2d(
        *arrays,
        strides=(2, 1),
        padding=((1, 2), (0, 1)),
        feature_group_count=2,
        precision="highest",
        implementation=implementation,
    )


def _deform_conv2d_arrays(dtype):
    x, kernel, bias = _draw(0, 2, 9, 7, 12), _draw(1, 3, 2, 6, 10) / 6, _draw(4, 10)
    # Offset and mask may be wider than the image, and are: rounded, they would sample elsewhere.
    offset, mask = _draw(2, 2, 5, 7, 3, 6, 2), jax.nn.sigmoid(_draw(3, 2, 5, 7, 3, 6))
    return x.astype(dtype), kernel.astype(dtype), offset, mask, bias.astype(dtype)


def _deform_roi_pool(x, offset, mask, *, implementation):
    return ops.deform_roi_pool(
        x,
        jnp.asarray(_ROIS),
        offset,
        mask,
        spatial_scale=0.5,
        pooled_size=3,
        output_dim=4,
        group_size=2,
        trans_std=0.1,
        implementation=implementation,
    )


def _deform_roi_align(x, offset, mask, *, implementation):
    return ops.deform_roi_align(
        x,
        jnp.asarray(_ROIS),
        offset,
        mask,
        spatial_scale=0.5,
        pooled_size=3,
        implementation=implementation,
    )


def _roi_arrays(dtype):
    offset, mask = _draw(1, 3, 3, 3, 1, 2), jax.nn.sigmoid(_draw(2, 3, 3, 3))
    return _draw(0, 2, 9, 11, 16).astype(dtype), offset, mask


_ROIS = np.array([[1, 0, 2, 13, 11], [0, 4, 3, 20, 17], [1, -3, -5, 8, 9]], np.float32)

# A line for each operator of `jax_dcn.ops`.
PROBLEMS = {
    "deform_conv2d": Problem(_deform_conv2d, _deform_conv2d_arrays),
    "deform_roi_align": Problem(_deform_roi_align, _roi_arrays),
    "deform_roi_pool": Problem(_deform_roi_pool, _roi_arrays),
}
