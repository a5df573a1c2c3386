# SPDX-License-Identifier: MIT
"""oneDNN's ordinary convolution of the same shape, through PyTorch, channels last."""

import torch

from benchmarks.cpu.engines import Task, Unsupported, channels_last, symmetric_padding


def version() -> str:
    return torch.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    if mode not in ("forward", "training") or dtype != "float32":
        raise Unsupported(f"{mode} in {dtype}")
    torch.set_num_threads(threads)
    padding = symmetric_padding(case)
    x, kernel, _, _, bias = case.arrays()
    arrays = [tensor(x, (0, 3, 1, 2)), tensor(kernel, (3, 2, 0, 1)), torch.from_numpy(bias)]
    grad_y = tensor(case.cotangent(), (0, 3, 1, 2))

    def convolve():
        groups = case.feature_group_count
        return torch.nn.functional.conv2d(
            *arrays, case.strides, padding, case.kernel_dilation, groups
        )

    def forward():
        with torch.no_grad():
            return (convolve(),)

    def training():
        y = convolve()
        return y, *torch.autograd.grad(y, arrays, grad_y)

    if mode == "training":
        for array in arrays:
            array.requires_grad_()
    run = training if mode == "training" else forward
    return Task(run, lambda: results(*run()))


def tensor(array, axes) -> torch.Tensor:
    return torch.from_numpy(array).permute(axes).contiguous(memory_format=torch.channels_last)


def results(y, grad_x=None, grad_kernel=None, *_):
    found = [channels_last(y.detach())]
    if grad_x is not None:
        found += [channels_last(grad_x), grad_kernel.permute(2, 3, 1, 0).numpy()]
    return found
