# SPDX-License-Identifier: MIT
"""`dcnv3` and `dcnv4` equal the published formulas, with taps width first, pairs (x, y) and a grid
that stretches with the offsets."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import dcnv3, dcnv4, deform_conv2d
from tests.deform_aggregate.windows import (
    BATCH,
    CHANNELS,
    GROUP_CHANNELS,
    GROUPS,
    WINDOWS,
    Window,
    in_torch,
)
from tests.laws import loops


def published(window: Window, x, offset, mask) -> np.ndarray:
    y = np.zeros((BATCH, *window.output, CHANNELS))
    for n, i, j, c in np.ndindex(*y.shape):
        group = c // GROUP_CHANNELS
        for t, (row, column) in enumerate(window.taps):
            dx, dy = offset[n, i, j, group, t]
            h, w = window.position(0, i, row, dy), window.position(1, j, column, dx)
            y[n, i, j, c] += mask[n, i, j, group, t] * loops.read(x[n, ..., c], h, w, False)
    return y


@pytest.mark.parametrize("name", WINDOWS)
def test_values_are_those_of_the_published_kernel(name):
    window = Window(WINDOWS[name])
    y = dcnv3(*window.arrays(), **window.options)
    np.testing.assert_allclose(y, published(window, *window.arrays()), atol=1e-12)


def depthwise(window: Window, x, offset, mask):
    """The same sum as a deformable convolution with a kernel of ones, whose taps are in rows."""
    order = sorted(range(len(window.taps)), key=lambda t: window.taps[t])
    taps = np.array(window.taps)[order]
    centre = np.array(
        [(d * (k - 1)) >> 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    )
    grid = (taps * np.array(window.dilation) - centre)[(None,) * 4]
    offset = window.scale * offset[..., order, ::-1] + (window.scale - 1) * grid
    mask = mask[..., order]
    rows = [window.kernel[1] * row + column for row, column in taps]
    whole = (*mask.shape[:-1], window.kernel[0] * window.kernel[1])
    return deform_conv2d(
        x,
        jnp.ones((*window.kernel, 1, CHANNELS)),
        jnp.zeros((*whole, 2)).at[..., rows, :].set(offset),
        jnp.zeros(whole).at[..., rows].set(mask),
        strides=window.strides,
        padding=window.padding,
        kernel_dilation=window.dilation,
        feature_group_count=CHANNELS,
    )


@pytest.mark.parametrize("name", ["without_centre", "strided"])
def test_gradients_are_those_of_a_depthwise_deformable_convolution(name):
    window = Window(WINDOWS[name])
    expected, expected_vjp = jax.vjp(lambda *a: depthwise(window, *a), *window.arrays())
    actual, vjp = jax.vjp(lambda *a: dcnv3(*a, **window.options), *window.arrays())
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=actual.shape))
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    for gradient, wanted in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-11)


def test_values_and_gradients_equal_torch():
    torch = pytest.importorskip("torch")
    window = Window(WINDOWS["stretched"])
    x, offset, mask = window.arrays()
    offset += 0.0625  # where no position is a whole number
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, offset, mask)]
    expected = in_torch(torch, window, *tensors)
    cotangent = np.random.default_rng(1).normal(size=expected.shape)
    gradients = torch.autograd.grad(expected, tensors, torch.tensor(cotangent))
    actual, vjp = jax.vjp(lambda *a: dcnv3(*a, **window.options), x, offset, mask)
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-12)
    for gradient, wanted in zip(vjp(jnp.asarray(cotangent)), gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted.numpy(), atol=1e-11)


def test_without_offsets_every_tap_reads_a_pixel_in_float32():
    size = (50, 84)  # where the published PyTorch version misses pixels
    x = np.random.default_rng(0).normal(size=(*size, 1)).astype(np.float32)
    offset, mask = np.zeros((*size, 1, 9, 2), np.float32), np.zeros((*size, 1, 9), np.float32)
    mask[..., 3] = 1  # The second column, the first row: the pixel above.
    y, vjp = jax.vjp(lambda offset: dcnv3(x, offset, mask), jnp.asarray(offset))
    above = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    np.testing.assert_array_equal(y, above)
    (gradient,) = vjp(jnp.ones_like(y))
    right = np.concatenate([above[:, 1:], np.zeros_like(x[:, :1])], axis=1)
    # The right-hand slope, for no position fell below its whole number; none above the image.
    expected = np.where(np.arange(size[0])[:, None] == 0, 0, (right - above)[..., 0])
    np.testing.assert_array_equal(gradient[..., 0, 3, 0], expected)


def test_one_pixel_before_the_first_every_gradient_is_zero():
    window = Window(WINDOWS["stretched"])
    x, offset, mask = window.arrays()
    offset[0, 0, 0, 0, 0] = [0.3, 1 / 3]  # the tap at row -1.5, moved by half a pixel
    assert window.position(0, 0, 0, offset[0, 0, 0, 0, 0, 1]) == -1
    f = lambda offset, mask: dcnv3(x, offset, mask, **window.options)[0, 0, 0].sum()
    grad_offset, grad_mask = jax.grad(f, (0, 1))(offset, mask)
    assert not grad_offset[0, 0, 0, 0, 0].any() and grad_mask[0, 0, 0, 0, 0] == 0


def test_positions_of_bfloat16_images_are_float32():
    x = jnp.asarray(np.arange(1000)[None, :, None] % 2, jnp.bfloat16)
    offset = jnp.full((1, 1000, 1, 1, 2), jnp.asarray([0.75, 0.0]))
    y = dcnv3(x, offset, jnp.ones((1, 1000, 1, 1)), kernel_size=1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y[0, 700:704, 0].astype(float), [0.75, 0.25] * 2, atol=0.01)


def packed(offset, mask, padding: float) -> np.ndarray:
    """Offsets and weights as DCNv4 packs them."""
    *leading, groups, taps, _ = offset.shape
    by_group = np.concatenate([offset.reshape(*leading, groups, 2 * taps), mask], -1)
    numbers = by_group.reshape(*leading, groups * taps * 3)
    return np.pad(
        numbers,
        [(0, 0)] * len(leading) + [(0, -numbers.shape[-1] % 8)],
        constant_values=padding,
    )


@pytest.mark.parametrize("name", ["plain", "without_centre"])
def test_packed_numbers_are_offsets_then_weights_of_each_group(name):
    window = Window(WINDOWS[name])
    x, offset, mask = window.arrays()
    offset_mask = packed(offset, mask, np.nan)
    assert offset_mask.shape[-1] == {"plain": 88, "without_centre": 128}[name]
    options = window.options | dict(groups=GROUPS)
    expected = dcnv3(x, offset, mask, **window.options)
    y, vjp = jax.vjp(lambda a: dcnv4(x, a, **options), jnp.asarray(offset_mask))
    np.testing.assert_array_equal(y, expected)
    (gradient,) = vjp(y)
    filled = GROUPS * len(window.taps) * 3
    assert np.isfinite(gradient).all() and not gradient[..., filled:].any()
    assert gradient[..., :filled].all(0).all(0).any()
    shares = np.exp(mask) / np.exp(mask).sum(-1, keepdims=True)
    normalised = dcnv4(x, offset_mask, **options, softmax=True)
    np.testing.assert_allclose(normalised, dcnv3(x, offset, shares, **window.options), atol=1e-12)


def test_an_image_does_not_depend_on_its_batch():
    """The published kernel mixes images up where blocks of queries reach over their ends."""
    random = np.random.default_rng(0)
    x, offset_mask = random.normal(size=(8, 7, 7, 32)), random.normal(size=(8, 7, 7, 32 * 27))
    y = dcnv4(x, offset_mask, groups=32)
    for image in range(8):
        alone = dcnv4(x[image], offset_mask[image], groups=32)
        np.testing.assert_array_equal(y[image], alone)


X, OFFSET, MASK = Window(WINDOWS["plain"]).arrays()
PACKED = packed(OFFSET, MASK, 0)
WRONG3 = {
    "x": (dict(x=X[0, 0]), "x must be [..., H, W, C] with pixels and channels"),
    "empty": (dict(x=X[:, :0]), "x must be [..., H, W, C] with pixels and channels"),
    "flat": (
        dict(offset=OFFSET.reshape(BATCH, 5, 7, -1)),
        "offset does not fit x, kernel_size and remove_center: expected (2, 5, 7, G, 9, 2)",
    ),
    "taps": (dict(kernel_size=5), "expected (2, 5, 7, G, 25, 2), got (2, 5, 7, 3, 9, 2)"),
    "centre": (dict(remove_center=True), "expected (2, 5, 7, G, 8, 2)"),
    "even": (
        dict(remove_center=True, kernel_size=(3, 2)),
        "remove_center needs a kernel with a tap in the centre, got kernel_size=(3, 2)",
    ),
    "no tap": (
        dict(remove_center=True, kernel_size=1),
        "remove_center leaves no tap of kernel_size=(1, 1)",
    ),
    "groups": (dict(x=X[..., 1:]), "offset has 3 groups, which must divide the 5 channels of x"),
    "mask": (dict(mask=MASK[..., 1:]), "mask does not fit offset: expected (2, 5, 7, 3, 9), got"),
    "small": (dict(padding=0, kernel_dilation=3), "x is smaller than the kernel"),
    "scale": (dict(offset_scale=np.inf), "offset_scale must be a finite number"),
}
WRONG4 = {
    "packed": (dict(offset_mask=PACKED[..., :81]), "expected (2, 5, 7, 88), which is ceil("),
    "groups": (dict(groups=4), "groups=4 must divide the 6 channels of x"),
    "softmax": (dict(softmax="sum"), "softmax must be True or False"),
    "centre": (dict(remove_center=True), "expected (2, 5, 7, 72), which is ceil("),
}


@pytest.mark.parametrize("wrong", WRONG3)
def test_bad_input_of_dcnv3_names_the_argument(wrong):
    change, message = WRONG3[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        dcnv3(**dict(x=X, offset=OFFSET, mask=MASK) | change)


def test_published_arrays_are_recognised():
    published = dict(offset=OFFSET.reshape(BATCH, 5, 7, -1), mask=MASK.reshape(BATCH, 5, 7, -1))
    good = dict(offset=OFFSET, mask=MASK)
    for name, array in published.items():
        with pytest.raises(ValueError, match=f"write {name}.reshape") as error:
            dcnv3(X, **good | {name: array})
        written = str(error.value).split("write ")[1].removesuffix(".")
        np.testing.assert_array_equal(eval(written, {name: array}), good[name])


@pytest.mark.parametrize("wrong", WRONG4)
def test_bad_input_of_dcnv4_names_the_argument(wrong):
    change, message = WRONG4[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        dcnv4(**dict(x=X, offset_mask=PACKED, groups=GROUPS) | change)


@pytest.mark.parametrize("name", ["stride", "dilation", "pad"])
def test_published_names_are_answered_with_the_names_here(name):
    with pytest.raises(TypeError, match=f"there is no argument {name}=: write"):
        dcnv3(X, OFFSET, MASK, **{name: 1})
