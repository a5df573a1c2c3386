# SPDX-License-Identifier: MIT
"""`grid_sample` equals `torch.nn.functional.grid_sample`, and refuses bad input in words."""

import functools
import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_dcn
from jax_dcn import grid_sample
from jax_dcn._src.deform_aggregate.grid_sample import MODES, PADDING_MODES

OPTIONS = list(itertools.product(MODES, PADDING_MODES, (False, True)))
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 7, 3))
GRID = RANDOM.uniform(-2.3, 2.3, (2, 4, 6, 2))
COTANGENT = RANDOM.normal(size=(2, 4, 6, 3))


@pytest.mark.parametrize("mode, padding_mode, align_corners", OPTIONS)
def test_values_and_gradients_equal_torch(mode, padding_mode, align_corners):
    torch = pytest.importorskip("torch")
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    x = torch.tensor(X).permute(0, 3, 1, 2).requires_grad_()
    grid = torch.tensor(GRID, requires_grad=True)
    expected = torch.nn.functional.grid_sample(x, grid, **options).permute(0, 2, 3, 1)
    gradients = torch.autograd.grad(expected, (x, grid), torch.tensor(COTANGENT))
    actual, vjp = jax.vjp(lambda x, grid: grid_sample(x, grid, **options), X, GRID)
    grad_x, grad_grid = vjp(jnp.asarray(COTANGENT))
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(grad_x, gradients[0].permute(0, 2, 3, 1).numpy(), atol=1e-13)
    np.testing.assert_allclose(grad_grid, gradients[1].numpy(), atol=1e-12)


def test_the_identity_grid_gives_the_image():
    rows, columns = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 7), indexing="ij")
    grid = np.stack([columns, rows], axis=-1)
    for mode in MODES:
        y = grid_sample(X[0], grid, mode=mode, align_corners=True)
        np.testing.assert_allclose(y, X[0], atol=1e-14)


def test_images_of_one_pixel_are_reflected_into_it():
    y = grid_sample(X[:, :1, :1], GRID, padding_mode="reflection", align_corners=True)
    np.testing.assert_allclose(y, np.broadcast_to(X[:, :1, :1], y.shape), atol=1e-14)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_infinite_positions_give_numbers_and_finite_gradients(mode, padding_mode):
    grid = np.where(np.arange(4)[:, None, None] == 1, [np.inf, -3e38], GRID[0]).astype(np.float32)
    f = lambda x: grid_sample(x, grid, mode=mode, padding_mode=padding_mode)
    y, vjp = jax.vjp(f, X[0].astype(np.float32))
    (gradient,) = vjp(jnp.ones_like(y))
    assert jnp.isfinite(y).all() and jnp.isfinite(gradient).all()
    if padding_mode == "zeros":
        assert not y[1].any()


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_a_pixel_beside_the_pixels_that_are_read_has_no_effect(mode, implementation):
    inside = 0.4 * GRID
    f = functools.partial(grid_sample, grid=inside, mode=mode, implementation=implementation)
    spot = np.zeros_like(X)
    spot[1, 3, 4] = 1
    reads = f(spot) != 0
    actual = f(np.where(spot, np.nan, X))
    np.testing.assert_array_equal(jnp.isnan(actual), reads)
    np.testing.assert_array_equal(actual[~reads], f(X)[~reads])


@pytest.mark.parametrize("mode, padding_mode, align_corners", OPTIONS)
def test_an_exported_program_samples_images_of_one_pixel(mode, padding_mode, align_corners):
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    f = jax.jit(functools.partial(grid_sample, **options))
    height, width = export.symbolic_shape("h, w")
    types = [jax.ShapeDtypeStruct((height, width, 3), X.dtype), jax.typeof(jnp.asarray(GRID[0]))]
    program = export.export(f, disabled_checks=jax_dcn.export_disabled_checks)(*types)
    for x in (X[0], X[0, :1], X[0, :1, :1]):
        np.testing.assert_allclose(program.call(x, GRID[0]), f(x, GRID[0]), atol=1e-12)


def test_batch_axes_are_free():
    y = grid_sample(X[0], GRID[0])
    stacked = grid_sample(X[:1, None, None], GRID[:1, None, None])
    assert y.shape == (4, 6, 3) and stacked.shape == (1, 1, 1, 4, 6, 3)
    np.testing.assert_array_equal(stacked[0, 0, 0], y)
    assert grid_sample(X[:0], GRID[:0]).shape == (0, 4, 6, 3)
    assert grid_sample(X, GRID[:, :0]).shape == (2, 0, 6, 3)


WRONG = {
    "x": (dict(x=X[0, 0]), "x must be [..., H, W, C] with pixels and channels"),
    "empty": (dict(x=X[:, :0]), "x must be [..., H, W, C] with pixels and channels"),
    "grid": (dict(grid=GRID[0]), "grid must be [..., Ho, Wo, 2] with the batch axes (2,) of x"),
    "grid axis": (dict(grid=GRID[..., :1]), "grid must be [..., Ho, Wo, 2]"),
    "volume": (dict(grid=GRID[..., [0, 1, 1]]), "(2, 4, 6, 3). Volumes are not sampled."),
    "grid batch": (dict(grid=GRID[1:]), "grid must be [..., Ho, Wo, 2]"),
    "dtype": (dict(grid=GRID > 0), "grid must have a dtype of"),
    "mode": (dict(mode="linear"), "mode must be one of ('bilinear', 'nearest', 'bicubic')"),
    "padding_mode": (dict(padding_mode="wrap"), "padding_mode must be one of ('zeros', 'border'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_names_the_argument(wrong):
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        grid_sample(**dict(x=X, grid=GRID) | change)


MANY_BATCH_AXES = """
import jax, jax.numpy as jnp, jax_dcn
batch = 3, 1, 2
x, grid = jnp.ones((*batch, 6, 7, 3)), jnp.zeros((*batch, 8, 9, 2))
loss = lambda x, grid: jax_dcn.grid_sample(x, grid, mode="bicubic").sum()
print(jax.jit(jax.grad(loss, 1))(x, grid).shape)
"""


def test_optimized_gradient_of_bicubic_takes_many_batch_axes():
    """XLA's optimizations, which the suite runs without, once made a program that crashed."""
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", MANY_BATCH_AXES]
    output = subprocess.check_output(command, env=environment, text=True)
    assert output == "(3, 1, 2, 8, 9, 2)\n"


@pytest.mark.parametrize("implementation", ["native", "xla"])
def test_images_of_pixels_beyond_32_bits_are_refused(implementation):
    sample = functools.partial(grid_sample, implementation=implementation)
    grid = jax.ShapeDtypeStruct((1, 3, 2, 2), "float32")
    image = lambda width: jax.ShapeDtypeStruct((1, 2**15, width, 1), "float32")
    assert jax.eval_shape(sample, image(2**16 - 1), grid).shape == (1, 3, 2, 1)
    with pytest.raises(
        ValueError, match=r"x must have less than 2\*\*31 pixels .*, got 2147483648"
    ):
        jax.eval_shape(sample, image(2**16), grid)
