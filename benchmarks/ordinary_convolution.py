# SPDX-License-Identifier: MIT
"""The ordinary convolution of the same shape: the measure of every benchmark here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.cases import Case


def jax_convolution(case: Case, x, kernel, bias, grad_y) -> dict[str, Callable]:
    """XLA's, forward and with all gradients."""

    def convolve(x, kernel, bias):
        return case.ordinary_convolution(x, kernel) + bias

    return with_gradients(convolve, (x, kernel, bias), grad_y)


def with_gradients(f: Callable, arrays, grad_y) -> dict[str, Callable]:
    """`f` alone, and with the gradients of all its arguments, compiled and waited for."""

    def train(grad_y, *arrays):
        y, vjp = jax.vjp(f, *arrays)
        return y, vjp(grad_y)

    arrays, grad_y = tuple(map(jnp.asarray, arrays)), jnp.asarray(grad_y)
    forward, both = jax.jit(f), jax.jit(train)
    return {
        "forward": lambda: jax.block_until_ready(forward(*arrays)),
        "training": lambda: jax.block_until_ready(both(grad_y, *arrays)),
    }


def torch_convolution(case: Case, x, kernel, bias, grad_y) -> dict[str, Callable]:
    """oneDNN's through PyTorch, channels last; nothing where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}

    def tensor(array, axes):
        return torch.from_numpy(array.copy()).permute(axes).to(memory_format=torch.channels_last)

    x, grad_y = tensor(x, (0, 3, 1, 2)), tensor(grad_y, (0, 3, 1, 2))
    arrays = [x, tensor(kernel, (3, 2, 0, 1)), torch.from_numpy(bias.copy())]
    (top, bottom), (left, right) = case.geometry.padding
    assert top == bottom and left == right

    def convolve():
        return torch.nn.functional.conv2d(*arrays, case.strides, (top, left))

    def forward():
        with torch.no_grad():
            convolve()

    def training():
        for array in arrays:
            array.requires_grad_()
        y = convolve()
        torch.autograd.grad(y, arrays, grad_y)

    return {"forward": forward, "training": training}
