# SPDX-License-Identifier: MIT
"""Arguments that `deform_conv2d` alone refuses; `tests/laws` has the laws of every operator."""

import inspect
import re

import numpy as np
import pytest

import jax_dcn.linen
import jax_dcn.nnx
from jax_dcn import deform_conv2d, offset_from_positions, sampling_positions
from jax_dcn._src.deform_aggregate.taps import ARGUMENTS
from jax_dcn._src.deform_conv2d.hints import OPTIONS


def test_channels_and_features_must_be_there():
    empty = np.zeros((1, 4, 4, 0), np.float32)
    offset = np.zeros((1, 4, 4, 1, 9, 2), np.float32)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(empty, np.zeros((3, 3, 0, 2), np.float32), offset)
    with pytest.raises(ValueError, match="at least one channel"):
        deform_conv2d(
            np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 2, 0), np.float32), offset
        )


def test_images_smaller_than_the_kernel_are_refused():
    x, kernel, offset = (np.zeros(s, np.float32) for s in ((2, 4, 1), (3, 3, 1, 1), (1,) * 6))
    with pytest.raises(ValueError, match=r"x is smaller than the kernel.*leave 0x2 output"):
        deform_conv2d(x, kernel, offset, padding="VALID")


def test_a_kernel_with_the_taps_of_offset_is_not_taken_for_one_of_pytorch():
    x, offset = np.zeros((1, 4, 4, 6), np.float32), np.zeros((1, 4, 4, 1, 18, 2), np.float32)
    with pytest.raises(ValueError, match=r"got \(3, 6, 2, 5\)\.$"):
        deform_conv2d(x, np.zeros((3, 6, 2, 5), np.float32), offset)
    with pytest.raises(ValueError, match=r"write kernel.transpose\(2, 3, 1, 0\)"):
        deform_conv2d(x, np.zeros((5, 6, 3, 6), np.float32), offset)


def test_layer_of_linen_says_where_its_channels_come_from():
    with pytest.raises(TypeError, match="no argument in_channels=: the layer learns the channels"):
        jax_dcn.linen.DeformConv(4, 3, in_channels=2)


@pytest.mark.parametrize("image_size", [(7.0, 7.0), ("7", "7"), (7, 0), 7, (7, 7, 7)], ids=str)
def test_sizes_of_images_are_pairs_of_positive_integers(image_size):
    array = np.zeros((7, 7, 1, 9, 2), np.float32)
    for function in (sampling_positions, offset_from_positions):
        with pytest.raises(ValueError, match=r"image_size must be \(height, width\), positive int"):
            function(array, kernel_size=3, image_size=image_size)


@pytest.mark.parametrize(
    "function",
    [
        *(deform_conv2d, sampling_positions, offset_from_positions),
        *(jax_dcn.dcnv3, jax_dcn.dcnv4, jax_dcn.nnx.DeformConv, jax_dcn.linen.DeformConv),
    ],
)
def test_errors_tell_of_arguments_that_exist(function):
    # The signature of a layer of Flax NNX does not list its options.
    init = function.__init__ if isinstance(function, type) else function
    known = inspect.signature(init).parameters
    for name in {*OPTIONS, *ARGUMENTS}.difference(known):
        with pytest.raises(TypeError) as error:
            function(**{name: 1})
        assert set(re.findall(r"write (\w+)=", str(error.value))) <= set(known)
