# SPDX-License-Identifier: MIT
"""The C++ kernel of the package torch-ms-deform-attn.

The package is built against the PyTorch that is installed:
`pip install --no-build-isolation torch-ms-deform-attn`.
"""

import importlib.metadata

import torch
from torch_ms_deform_attn import ms_deform_attn

from benchmarks.attention.engines.torch_grid_sample import pixels_before, task
from benchmarks.cpu.engines import Task


def version() -> str:
    return importlib.metadata.version("torch-ms-deform-attn")


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    shapes, starts = torch.tensor(case.shapes), torch.tensor(pixels_before(case.shapes))

    def attend(value, locations, weights):
        return ms_deform_attn(value, shapes, starts, locations, weights)

    return task(attend, case, mode, dtype, threads)
