# SPDX-License-Identifier: MIT
"""Chooses the path of a deformable convolution on CUDA, by a model of the time of each path.

The fused kernels sample and multiply in one loop by the instruction `mma.sync`, and sample again for
every 128 or 256 features. Columns are sampled once and lie in memory, where XLA's products read them;
these use the newest matrix instructions of a GPU. Where tensor cores are the narrow part, the fused
kernels sample for free; where tensor cores are fast, columns are the better path.

The model was not compared with a GPU yet. The speeds of GPUs come from data sheets and from compiled
kernels; tests/native/cuda_resources.txt has the counts of instructions. `python -m benchmarks.gpu
--steps rule` measures both paths and prints the factors that correct the model. The environment
variable JAX_DCN_CUDA_PATH, `fused` or `columns`, overrides the model when a program is lowered.
"""

import dataclasses
import math
import os
from collections.abc import Collection
from typing import Any

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.operator import gpus

VARIABLE = "JAX_DCN_CUDA_PATH"
PATHS = ("fused", "columns")

# A slab: the samples that a block of the forward pass takes in a step, 64 pixels of 64 bytes of
# channels at one tap. Each feature multiplies a slab by _SLAB_FLOP, which count double in
# TF32, since TF32 is half as fast.
_SLAB_PIXELS, _SLAB_CHANNEL_BYTES = 64, 64
_SLAB_BYTES = _SLAB_PIXELS * _SLAB_CHANNEL_BYTES
_SLAB_FLOP = 2 * _SLAB_PIXELS * _SLAB_CHANNEL_BYTES // 2

# Instructions of a warp: for a slab, where not said otherwise, in bfloat16 on sm_90.
INSTRUCTIONS = {
    "forward, 256 features": 272,
    "forward, 128 features": 245,
    "gradient of the kernel, 128 features": 238,  # 202, and at most 36 to locate samples
    "gradients of samples, 64 bytes of features of four slabs": 137,
    "gradients of samples, dot products of four slabs": 646,
    "columns": 130,
    "gradients of samples from columns": 178,
}
# Clocks of a multiprocessor in which the eight warps of a block issue one instruction each.
_ISSUE_CLOCKS = 2
# How much of these clocks kernels use that do nothing but sample; and fused kernels, by the blocks
# that a multiprocessor holds.
_SAMPLING_ISSUE = 0.75
_FUSED_ISSUE = {1: 0.41, 2: 0.46}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The figures of an architecture.

    Attributes:
      name: The GPU that the figures are of.
      processors, clock: Multiprocessors, and their clock in GHz.
      product, mma: Speed of XLA's products, and of `mma.sync`: FLOP in 16 bits for each clock and
        multiprocessor.
      traffic: Bytes of columns that a multiprocessor writes in a clock: to the second-level cache
        where a chunk of columns stays there, else to memory.
      resident: Blocks of a fused kernel that a multiprocessor holds, by their shared memory.
      forward, backward: Time of the fused kernels over time of columns, measured over predicted.
    """

    name: str
    processors: int
    clock: float
    product: float
    mma: float
    traffic: float
    resident: int
    forward: float = 1.0
    backward: float = 1.0


# By compute capability. GPUs in between are taken for the next older one.
GPUS = {
    80: Gpu("A100", 108, 1.41, product=1640, mma=1840, traffic=13, resident=2),
    86: Gpu("RTX 3090", 82, 1.70, product=460, mma=460, traffic=6.7, resident=1),
    89: Gpu("RTX 4090", 128, 2.52, product=460, mma=460, traffic=16, resident=1),
    90: Gpu("H100", 132, 1.755, product=2590, mma=2560, traffic=23.7, resident=2),
    100: Gpu("B200", 148, 1.85, product=4900, mma=2560, traffic=24, resident=2),
    120: Gpu("RTX 5090", 170, 2.41, product=460, mma=460, traffic=16, resident=1),
}
_WITHOUT_A_GPU = 90  # for programs that are compiled for another machine: a guess


def why_not_fused(*operands: Any, wrt: Collection[str] = (), geometry: ConvGeometry) -> str | None:
    """Why the fused kernels should not run where they could; `None` where they should.

    `wrt` is empty in the forward pass. Operands are x, kernel and offset, and any after these.
    """
    path = os.environ.get(VARIABLE)
    if path not in (None, *PATHS):
        raise ValueError(f"{VARIABLE} must be one of {PATHS}, got {path!r}.")
    if path is not None:
        return None if path == "fused" else f"{VARIABLE} is {path}"
    gpu = gpu_here()
    times = microseconds(gpu, *operands[:3], wrt=wrt, geometry=geometry)
    factor = gpu.backward if wrt else gpu.forward
    if times["fused"] * factor < times["columns"]:
        return None
    return f"columns in memory are expected to be faster on {gpu.name}"


def gpu_here() -> Gpu:
    """The figures for the first GPU of this process; without a GPU, for compute capability 9.0."""
    for device in gpus.devices():
        return gpu_of(gpus.capability(device))
    return GPUS[_WITHOUT_A_GPU]


def gpu_of(capability: int) -> Gpu:
    """The figures for a compute capability such as 90."""
    return GPUS[max((known for known in GPUS if known <= capability), default=min(GPUS))]


def microseconds(
    gpu: Gpu,
    x: Any,
    kernel: Any,
    offset: Any,
    *,
    wrt: Collection[str] = (),
    geometry: ConvGeometry,
) -> dict[str, float]:
    """The time of each of the `PATHS`, without the gather of the gradient of x, which both have."""
    features, size = kernel.shape[-1] // geometry.feature_group_count, x.dtype.itemsize
    samples = math.prod(offset.shape[:3]) * math.prod(kernel.shape[:2])
    slabs = samples * x.shape[-1] * size / _SLAB_BYTES
    if wrt:
        clocks = _backward_clocks(gpu, features, features * size, wrt)
    else:
        clocks = _forward_clocks(gpu, features)
    all_clocks = 1e3 * gpu.clock * gpu.processors
    return {path: of_slab * slabs / all_clocks for path, of_slab in clocks.items()}


# All below are clocks of a multiprocessor for a slab.


def _forward_clocks(gpu: Gpu, features: int) -> dict[str, float]:
    tile = 256 if features > 128 else 128
    fused = -(-features // tile) * _fused(gpu, f"forward, {tile} features", tile)
    return {
        "fused": fused,
        "columns": _sampled("columns") + _written(gpu) + _product(gpu, features),
    }


def _backward_clocks(
    gpu: Gpu, features: int, feature_bytes: int, wrt: Collection[str]
) -> dict[str, float]:
    """Where both are wanted, columns take the place of their gradient, and are sampled once."""
    fused = columns = 0.0
    if "kernel" in wrt:
        tiles = -(-features // 128)
        fused += tiles * _fused(gpu, "gradient of the kernel, 128 features", 128)
        columns += _written(gpu) + _product(gpu, features)
    if {"x", "offset", "mask"} & set(wrt):
        steps, dots = (_fourth(name) for name in ("64 bytes of features", "dot products"))
        issued = (
            (-(-feature_bytes // 64) * steps + dots) * _ISSUE_CLOCKS / _FUSED_ISSUE[gpu.resident]
        )
        fused += max(issued, _SLAB_FLOP * features / gpu.mma)
        fused += _written(gpu) if "x" in wrt else 0
        columns += _product(gpu, features) + _written(gpu)
        columns += _sampled("gradients of samples from columns")
    elif "kernel" in wrt:
        columns += _sampled("columns")
    return {"fused": fused, "columns": columns}


def _sampled(kernel: str) -> float:
    return INSTRUCTIONS[kernel] * _ISSUE_CLOCKS / _SAMPLING_ISSUE


def _written(gpu: Gpu) -> float:
    """Columns, written by a kernel; the product that reads them has its reads in its speed."""
    return _SLAB_BYTES / gpu.traffic


def _product(gpu: Gpu, features: int) -> float:
    return _SLAB_FLOP * features / gpu.product


def _fused(gpu: Gpu, kernel: str, features: int) -> float:
    issued = INSTRUCTIONS[kernel] * _ISSUE_CLOCKS / _FUSED_ISSUE[gpu.resident]
    return max(issued, _SLAB_FLOP * features / gpu.mma)


def _fourth(part: str) -> float:
    """Instructions for one slab, of a part that takes four slabs at a time."""
    return INSTRUCTIONS[f"gradients of samples, {part} of four slabs"] / 4
