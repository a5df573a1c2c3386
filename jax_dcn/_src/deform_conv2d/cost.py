# SPDX-License-Identifier: MIT
"""Chooses the path of each part of a deformable convolution on CUDA, by a model of the time of each path.

The parts are the forward pass, the gradient of the kernel, and the gradients of samples: the gradients
of x, offset and mask. The fused kernels sample and multiply in one loop by the instruction `mma.sync`, and
sample again for every 128 or 256 features. Columns are sampled once and lie in memory, where XLA's products
read them; these use the newest matrix instructions of a GPU. Where tensor cores are the narrow part, the
fused kernels sample for free; where tensor cores are fast, columns are the better path. A backward pass may
mix the paths: the gradient of the kernel samples again for every 128 features, the gradients of samples
sample once for all of them. Where both go through columns, they share the sampling.

The model was not compared with a GPU yet. The speeds of GPUs come from data sheets and from compiled
kernels; tests/native/cuda_resources.txt has the counts of instructions. `python -m benchmarks.gpu
--steps rule` measures both paths of each part and prints the factors that correct the model. The
environment variable JAX_DCN_CUDA_PATH overrides the model when a program is lowered: `fused` or
`columns` for all parts, or as in `kernel=fused,samples=columns` for some of them.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.operator import gpus

VARIABLE = "JAX_DCN_CUDA_PATH"
PATHS = ("fused", "columns")
PARTS = ("forward", "kernel", "samples")

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
# The share of these clocks that is used: by kernels that only sample, and by fused kernels, for the
# number of blocks that a multiprocessor holds.
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
      forward, kernel, samples: The correction of each part: the measured time of the fused kernels
        over the measured time of columns, divided by the predicted ratio.
    """

    name: str
    processors: int
    clock: float
    product: float
    mma: float
    traffic: float
    resident: int
    forward: float = 1.0
    kernel: float = 1.0
    samples: float = 1.0


# By compute capability. GPUs in between are taken for the next older one.
GPUS = {
    80: Gpu("A100", 108, 1.41, product=1640, mma=1840, traffic=13, resident=2),
    86: Gpu("RTX 3090", 82, 1.70, product=460, mma=460, traffic=6.7, resident=1),
    89: Gpu("RTX 4090", 128, 2.52, product=460, mma=460, traffic=16, resident=1),
    90: Gpu("H100", 132, 1.755, product=2590, mma=2560, traffic=23.7, resident=2),
    100: Gpu("B200", 148, 1.85, product=4900, mma=2560, traffic=24, resident=2),
    120: Gpu("RTX 5090", 170, 2.41, product=460, mma=460, traffic=16, resident=1),
}


def why_not_fused(*operands: Any, wrt: Collection[str] = (), geometry: ConvGeometry) -> str | None:
    """Why no fused kernel should run where they could; `None` where some should.

    `wrt` is empty in the forward pass. Operands are x, kernel and offset, and any after these.
    """
    if "fused" in paths(*operands, wrt=wrt, geometry=geometry).values():
        return None
    if VARIABLE in os.environ:
        return f"{VARIABLE} is {os.environ[VARIABLE]}"
    return f"columns in memory are expected to be faster on {gpu_here().name}"


def paths(
    x: Any, kernel: Any, offset: Any, *_: Any, wrt: Collection[str] = (), geometry: ConvGeometry
) -> dict[str, str]:
    """The path of each part: as the environment says, else as the model expects them to be fastest."""
    named = _named_paths()
    parts = parts_of(wrt)
    choices = ([named[part]] if part in named else PATHS for part in parts)
    mixes = [dict(zip(parts, mix, strict=True)) for mix in itertools.product(*choices)]
    gpu = gpu_here()

    def time(mix: dict[str, str]) -> float:
        return microseconds(gpu, x, kernel, offset, mix, wrt=wrt, geometry=geometry)

    return min(mixes, key=time)


def parts_of(wrt: Collection[str]) -> tuple[str, ...]:
    """The parts that compute the gradients of the primals in `wrt`, or the forward pass."""
    needed = {part_of(name) for name in wrt if name != "bias"} if wrt else {"forward"}
    return tuple(part for part in PARTS if part in needed)


def part_of(primal: str) -> str:
    """The part that computes the gradient of x, kernel, offset or mask."""
    return "kernel" if primal == "kernel" else "samples"


def _named_paths() -> dict[str, str]:
    """The paths that the environment names, by part."""
    value = os.environ.get(VARIABLE)
    if value is None:
        return {}
    if value in PATHS:
        return dict.fromkeys(PARTS, value)
    items = (item.partition("=") for item in value.split(","))
    named = {part: path for part, _, path in items}
    if not (named.keys() <= set(PARTS) and set(named.values()) <= set(PATHS)):
        raise ValueError(
            f"{VARIABLE} must be one of {PATHS}, or name one of them for some of the parts {PARTS}, "
            f"as in kernel=fused,samples=columns, got {value!r}."
        )
    return named


def gpu_here() -> Gpu:
    """The figures for the first GPU of all processes; without a GPU, for compute capability 9.0."""
    return gpus.entry(GPUS)


def microseconds(
    gpu: Gpu,
    x: Any,
    kernel: Any,
    offset: Any,
    paths: Mapping[str, str],
    *,
    wrt: Collection[str] = (),
    geometry: ConvGeometry,
) -> float:
    """The time of the parts on their `paths`, without the gather of the gradient of x.

    Every path gathers the gradient of x, and takes the same time for it.
    """
    features, size = kernel.shape[-1] // geometry.feature_group_count, x.dtype.itemsize
    samples = math.prod(offset.shape[:3]) * math.prod(kernel.shape[:2])
    slabs = samples * x.shape[-1] * size / _SLAB_BYTES
    clocks = _clocks(gpu, features, features * size, "x" in wrt)
    # The gradients of samples leave the columns, so that the gradient of the kernel does not sample.
    if paths.get("samples") == "columns":
        clocks["kernel", "columns"] -= _sampled("columns")
    of_slab = sum(clocks[choice] for choice in paths.items())
    return of_slab * slabs / (1e3 * gpu.clock * gpu.processors)


# All below are clocks of a multiprocessor for a slab.


def _clocks(
    gpu: Gpu, features: int, feature_bytes: int, gathers: bool
) -> dict[tuple[str, str], float]:
    """Clocks of each part by each path; `gathers` if columns are written for the gradient of x."""
    tile = 256 if features > 128 else 128
    fused = _fused(gpu, f"forward, {tile} features", features, tile)
    fused_kernel = _fused(gpu, "gradient of the kernel, 128 features", features, 128)
    fused_samples = _fused_samples(gpu, features, feature_bytes)
    multiplied = _written(gpu) + _SLAB_FLOP * features / gpu.product
    return {
        ("forward", "fused"): fused * gpu.forward,
        ("forward", "columns"): _sampled("columns") + multiplied,
        ("kernel", "fused"): fused_kernel * gpu.kernel,
        ("kernel", "columns"): _sampled("columns") + multiplied,
        ("samples", "fused"): fused_samples * gpu.samples + gathers * _written(gpu),
        ("samples", "columns"): _sampled("gradients of samples from columns") + multiplied,
    }


def _sampled(kernel: str) -> float:
    return INSTRUCTIONS[kernel] * _ISSUE_CLOCKS / _SAMPLING_ISSUE


def _written(gpu: Gpu) -> float:
    """Columns, written by a kernel; the product that reads them has its reads in its speed."""
    return _SLAB_BYTES / gpu.traffic


def _fused(gpu: Gpu, kernel: str, features: int, tile: int) -> float:
    """A kernel that samples for every `tile` features."""
    issued = INSTRUCTIONS[kernel] * _ISSUE_CLOCKS / _FUSED_ISSUE[gpu.resident]
    return -(-features // tile) * max(issued, _SLAB_FLOP * tile / gpu.mma)


def _fused_samples(gpu: Gpu, features: int, feature_bytes: int) -> float:
    steps, dots = (_fourth(name) for name in ("64 bytes of features", "dot products"))
    instructions = -(-feature_bytes // 64) * steps + dots
    issued = instructions * _ISSUE_CLOCKS / _FUSED_ISSUE[gpu.resident]
    return max(issued, _SLAB_FLOP * features / gpu.mma)


def _fourth(part: str) -> float:
    """Instructions for one slab, of a part that takes four slabs at a time."""
    return INSTRUCTIONS[f"gradients of samples, {part} of four slabs"] / 4
