# SPDX-License-Identifier: MIT
"""The size of the chunks in which CUDA kernels and products share memory."""

import os

from jax_dcn._src.operator import gpus

VARIABLE = "JAX_DCN_CUDA_CHUNK_BYTES"

# Megabytes of a chunk, by compute capability: four fifths of the second-level cache, in which the
# columns stay until a product has read them. The 6 MB of 86 cannot hold enough columns to keep the GPU
# busy: its chunks go through memory, and are large so that they are few. Not measured.
_MEGABYTES = {80: 32, 86: 40, 89: 57, 90: 40, 100: 100, 120: 76}


def chunk_bytes() -> int:
    """Largest size of the arrays that a kernel holds of a chunk, its lists included.

    The environment variable JAX_DCN_CUDA_CHUNK_BYTES overrides the table when a program is lowered.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        return gpus.entry(_MEGABYTES) * 10**6
    if not named.isdecimal():
        raise ValueError(f"{VARIABLE} must be a number of bytes, got {named!r}.")
    return int(named)
