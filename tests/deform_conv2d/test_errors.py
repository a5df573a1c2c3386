# SPDX-License-Identifier: MIT
"""Arguments that `deform_conv2d` alone refuses; `tests/laws` has the laws of every operator."""

import numpy as np
import pytest

from jax_dcn import deform_conv2d


def test_channels_and_features_must_be_there():
    empty = np.zeros((1, 4, 4, 0), np.float32)
    offset = np.zeros((1, 4, 4, 1, 9, 2), np.float32)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(empty, np.zeros((3, 3, 0, 2), np.float32), offset)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(
            np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 2, 0), np.float32), offset
        )
