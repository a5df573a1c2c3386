# SPDX-License-Identifier: MIT
"""PyTorch's `grid_sample`, level by level: what mmcv and Transformers run on CPU."""

import math

import torch

from benchmarks.cpu.engines import Task, Unsupported


def version() -> str:
    return torch.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    def attend(value, locations, weights):
        sampled, first = [], 0
        for index, (height, width) in enumerate(case.shapes):
            image = value[:, first : first + height * width].permute(0, 2, 3, 1).flatten(0, 1)
            grid = (2 * locations[:, :, :, index] - 1).transpose(1, 2).flatten(0, 1)
            image = image.unflatten(2, (height, width))
            sampled.append(torch.nn.functional.grid_sample(image, grid, align_corners=False))
            first += height * width
        by_head = weights.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(2, 3)[:, None]
        sums = (torch.cat(sampled, dim=-1) * by_head).sum(-1)
        return sums.view(case.batch, -1, case.query_count).transpose(1, 2).contiguous()

    return task(attend, case, mode, dtype, threads)


def task(attend, case, mode: str, dtype: str, threads: int) -> Task:
    """Times a function of value, locations and weights."""
    if dtype != "float32":
        raise Unsupported("only float32")
    torch.set_num_threads(threads)
    training = mode == "training"
    tensors = [torch.tensor(a, requires_grad=training) for a in case.arrays()]
    grad_y = torch.tensor(case.cotangent())

    def run():
        y = attend(*tensors)
        return [y, *torch.autograd.grad(y, tensors, grad_y)] if training else [y]

    return Task(run, lambda: [result.detach().numpy() for result in run()[:3]])


def pixels_before(shapes) -> list[int]:
    """Where each level starts."""
    sizes = [math.prod(shape) for shape in shapes]
    return [sum(sizes[:index]) for index in range(len(sizes))]
