# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks of images that lie more than 2**31 elements into their array."""

import mmap

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d import cuda as deform_conv2d_cuda, fused, native
from tests.deform_conv2d.cases import Case

# Large images of which few pixels are sampled: the rest of their memory is never touched.
FAR = [
    Case("far", 10, (2000, 2000), 64, 8, kernel=(1, 1), padding=0, strides=(999, 999)),
]
# Those rows of the last image that samples may read.
ROWS = np.concatenate([np.arange(0, 9), np.arange(990, 1009), np.arange(1990, 2000)])


def check_far(case: Case, dtype: str, seed: int) -> None:
    """The last image gives what it gives alone, by columns and by the fused kernels."""
    random = np.random.default_rng(seed)
    shape = (case.batch, *case.image, case.channels)
    assert np.prod(shape[1:]) * (case.batch - 1) > 2**31
    memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    x = np.frombuffer(memory, dtype).reshape(shape)
    x[-1, ROWS] = random.normal(size=x[-1, ROWS].shape)
    small = Case("", case.batch, (3, 3), case.channels, case.features, (1, 1), padding=0)
    _, kernel, offset, mask, bias = (jnp.asarray(a) for a in small.arrays(seed=seed))
    kernel, bias = kernel.astype(dtype), bias.astype(dtype)
    grad_y = jnp.asarray(small.cotangent(seed=seed)).astype(dtype)

    @jax.jit
    def compute(x, offset, mask, grad_y):
        geometry, wrt = case.geometry, ("kernel", "offset", "mask")
        options = dict(geometry=geometry, precision=None)
        operands = x, kernel, offset, mask
        fused_backward = fused.FusedBackward(
            dict(zip(("x", "kernel", "offset", "mask"), operands, strict=True)),
            *(wrt[1:], geometry, None),
        )
        per_image = dict(
            y=deform_conv2d_cuda.deform_conv2d(*operands, bias, **options),
            fused_y=native.deform_conv2d(*operands, bias, **options)[0],
            **{f"fused_{name}": grad for name, grad in fused_backward(grad_y).items()},
        )
        grads = deform_conv2d_cuda.deform_conv2d_backward(*operands, grad_y, wrt=wrt, **options)
        of_kernel = dict(
            kernel=grads[0],
            fused_kernel=fused.grad_kernel(geometry, *operands, grad_y),
        )
        return per_image | dict(zip(wrt[1:], grads[1:], strict=True)), of_kernel

    def run(images: slice):
        return compute(
            jax.dlpack.from_dlpack(x[images]), *(a[images] for a in (offset, mask, grad_y))
        )

    (one, of_kernel), (alone, of_kernel_alone) = run(slice(None)), run(slice(-1, None))
    for name in one:
        result, expected = np.asarray(one[name][-1:]), np.asarray(alone[name])
        assert expected.any() and (result == expected).all(), f"{name} of {case}"
    for name in of_kernel:
        result, expected = np.asarray(of_kernel[name]), np.asarray(of_kernel_alone[name])
        assert expected.any() and np.allclose(result, expected, rtol=2e-3), f"{name} of {case}"
