# SPDX-License-Identifier: MIT
"""The memory in which CUDA kernels list, for each pixel, the samples that read it."""

import numpy as np

CORNERS = 4
_LONG_BIN = 256  # as in cuda/sampling/bins.h


def bin_words(samples: int, bins: int, sum_dtype: np.dtype) -> int:
    """Words of 4 bytes; the twin of `BinsLayout::words` in cuda/sampling/bins.h."""
    entries = CORNERS * samples
    weight_words = sum_dtype.itemsize // 4
    return (weight_words + 2) * entries + 2 * bins + entries // (_LONG_BIN + 1) + 2
