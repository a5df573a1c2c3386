# SPDX-License-Identifier: MIT
"""`ms_deform_attn` equals the published formula, and treats its edges as the published kernel does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import ms_deform_attn

SHAPES = ((6, 4), (3, 5), (1, 1))
BATCH, PIXELS, QUERIES, HEADS, POINTS = 2, 40, 9, 3, 2


def arrays(channels: int = 8, points: int = POINTS) -> tuple:
    """Random `(value, locations, weights)`, whose locations also lie outside the maps."""
    random = np.random.default_rng(0)
    samples = (BATCH, QUERIES, HEADS, len(SHAPES), points)
    value = random.normal(size=(BATCH, PIXELS, HEADS, channels))
    return value, random.uniform(-0.3, 1.3, (*samples, 2)), random.uniform(size=samples)


def published(torch, value, locations, weights):
    """The formula of Deformable DETR, by PyTorch's grid_sample, level by level."""
    levels, first = [], 0
    for level, (height, width) in enumerate(SHAPES):
        image = value[:, first : first + height * width].permute(0, 2, 3, 1).flatten(0, 1)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        image = image.unflatten(2, (height, width))
        levels.append(torch.nn.functional.grid_sample(image, grid, align_corners=False))
        first += height * width
    weights = weights.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(2, 3)[:, None]
    sums = (torch.cat(levels, dim=-1) * weights).sum(-1)
    return sums.view(BATCH, -1, QUERIES).transpose(1, 2)


@pytest.mark.parametrize("channels", [1, 7, 16, 33])
def test_values_and_gradients_equal_the_published_formula(channels):
    torch = pytest.importorskip("torch")
    inputs = arrays(channels)
    cotangent = np.random.default_rng(1).normal(size=(BATCH, QUERIES, HEADS * channels))
    tensors = [torch.tensor(array, requires_grad=True) for array in inputs]
    expected = published(torch, *tensors)
    gradients = torch.autograd.grad(expected, tensors, torch.tensor(cotangent))
    actual, vjp = jax.vjp(lambda *a: ms_deform_attn(*a, spatial_shapes=SHAPES), *inputs)
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-12)
    for gradient, wanted in zip(vjp(jnp.asarray(cotangent)), gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted.numpy(), atol=1e-11)


def test_native_equals_xla_along_every_tangent():
    inputs, results = arrays(), []
    tangents = [np.random.default_rng(2).normal(size=array.shape) for array in inputs]
    for implementation in ("native", "xla"):
        f = functools.partial(ms_deform_attn, spatial_shapes=SHAPES, implementation=implementation)
        results.append(jax.jvp(f, inputs, tuple(tangents)))
    for native, xla in zip(*results, strict=True):
        np.testing.assert_allclose(native, xla, atol=1e-11)


def test_points_that_differ_by_level_follow_each_other():
    value, locations, weights = arrays(points=6)
    points = (3, 6, 1)
    taken = np.concatenate([6 * level + np.arange(n) for level, n in enumerate(points)])
    flat = locations.reshape(BATCH, QUERIES, HEADS, 18, 2)[:, :, :, taken]
    kept = weights.reshape(BATCH, QUERIES, HEADS, 18)[..., taken]
    ragged = ms_deform_attn(value, flat, kept, spatial_shapes=SHAPES, points=points)
    left_out = np.ones(18, bool)
    left_out[taken] = False
    weights.reshape(BATCH, QUERIES, HEADS, 18)[..., left_out] = 0
    whole = ms_deform_attn(value, locations, weights, spatial_shapes=SHAPES)
    np.testing.assert_allclose(ragged, whole, atol=1e-13)


def test_discrete_reads_the_pixel_half_a_pixel_further_and_gives_locations_no_gradient():
    value, locations, weights = arrays()
    expected = np.zeros((BATCH, QUERIES, HEADS, value.shape[-1]))
    first = 0
    for level, (height, width) in enumerate(SHAPES):
        x = np.clip(np.trunc(locations[..., level, :, 0] * width + 0.5), 0, width - 1)
        y = np.clip(np.trunc(locations[..., level, :, 1] * height + 0.5), 0, height - 1)
        pixel = first + (y * width + x).astype(int)
        for n, q, m, p in np.ndindex(BATCH, QUERIES, HEADS, POINTS):
            weight = weights[n, q, m, level, p]
            expected[n, q, m] += weight * value[n, pixel[n, q, m, p], m]
        first += height * width
    options = dict(spatial_shapes=SHAPES, method="discrete")
    actual = ms_deform_attn(value, locations, weights, **options)
    np.testing.assert_allclose(actual, expected.reshape(actual.shape), atol=1e-13)
    gradient = jax.grad(lambda a: ms_deform_attn(value, a, weights, **options).sum())(locations)
    assert not gradient.any()


def test_discrete_reads_no_pixel_beside_the_pixel_that_it_takes(implementation):
    value, locations, weights = arrays()
    options = dict(spatial_shapes=SHAPES, method="discrete", implementation=implementation)
    spot = np.zeros_like(value)
    spot[:, 7] = 1  # inside the first level
    reads = ms_deform_attn(spot, locations, weights, **options) != 0
    actual = ms_deform_attn(np.where(spot, np.inf, value), locations, weights, **options)
    np.testing.assert_array_equal(jnp.isfinite(actual), ~reads)


@pytest.mark.parametrize("method", ["bilinear", "discrete"])
def test_levels_may_have_free_sizes(method):
    value, locations, weights = arrays()

    def f(value, locations, weights, level):
        shapes = (level.shape, *SHAPES[1:])
        return ms_deform_attn(
            value, locations, weights, spatial_shapes=shapes, method=method, implementation="xla"
        )

    (h,) = jax.export.symbolic_shape("h")
    size = value.shape[1] - SHAPES[0][0] * SHAPES[0][1] + h * SHAPES[0][1]
    of_value = jax.ShapeDtypeStruct((BATCH, size, *value.shape[2:]), value.dtype)
    level = jax.ShapeDtypeStruct((h, SHAPES[0][1]), value.dtype)
    exported = jax.export.export(jax.jit(f))(of_value, locations, weights, level)
    actual = exported.call(value, locations, weights, np.zeros(SHAPES[0]))
    expected = ms_deform_attn(value, locations, weights, spatial_shapes=SHAPES, method=method)
    np.testing.assert_allclose(actual, expected, atol=1e-13)


def test_one_pixel_before_the_first_every_gradient_is_zero():
    value, locations, weights = arrays()
    locations[0, 0, 0, 0, 0] = 0.4
    locations[0, 0, 0, 1, 0] = [-1 / 10, 0.5]  # x == -1 in a map 5 pixels wide
    f = lambda *a: ms_deform_attn(*a, spatial_shapes=SHAPES)[0, 0, : value.shape[-1]].sum()
    _, grad_locations, grad_weights = jax.grad(f, argnums=(0, 1, 2))(value, locations, weights)
    assert not grad_locations[0, 0, 0, 1, 0].any() and grad_weights[0, 0, 0, 1, 0] == 0
    assert grad_locations[0, 0, 0, 0, 0].any()


def test_coordinates_of_bfloat16_values_are_computed_in_float32():
    shapes = ((1, 1000),)
    value = jnp.asarray(np.arange(1000)[None, :, None, None] % 2, jnp.bfloat16)
    locations = jnp.full((1, 1, 1, 1, 1, 2), 0.5, jnp.float32).at[..., 0].set(700.75 / 1000)
    weights = jnp.ones((1, 1, 1, 1, 1), jnp.float32)
    y = ms_deform_attn(value, locations, weights, spatial_shapes=shapes)
    assert abs(float(y[0, 0, 0]) - 0.25) < 0.01  # a quarter of the way from pixel 700 to 701


def test_no_queries_give_no_results():
    value, locations, weights = arrays()
    y = ms_deform_attn(value, locations[:, :0], weights[:, :0], spatial_shapes=SHAPES)
    assert y.shape == (BATCH, 0, HEADS * 8)


VALUE, LOCATIONS, WEIGHTS = arrays()
WRONG = {
    "value": (dict(value=VALUE[:, 1:]), "value must be [..., S, M, D] with the S=40 pixels"),
    "locations": (dict(locations=LOCATIONS[0]), "locations does not fit value"),
    "heads": (dict(locations=LOCATIONS[:, :, 1:]), "locations does not fit value: expected"),
    "levels": (dict(locations=LOCATIONS[:, :, :, 1:]), "locations does not fit spatial_shapes"),
    "pairs": (dict(locations=LOCATIONS[..., :1]), "locations does not fit value"),
    "weights": (dict(weights=WEIGHTS[..., 1:]), "weights does not fit locations: expected"),
    "dtype": (dict(weights=WEIGHTS > 0), "weights must have a dtype of"),
    "spatial_shapes": (dict(spatial_shapes=None), "spatial_shapes must be a non-empty sequence"),
    "shapes of arrays": (
        dict(spatial_shapes=jnp.array(SHAPES)),
        "Write spatial_shapes.tolist().",
    ),
    "points": (dict(points=(2, 2)), "points must be None with locations"),
    "points of each level": (dict(points=POINTS), "points must be None with locations"),
    "points by level": (dict(points=(1, 3, 2)), "points must be None with locations"),
    "method": (dict(method="nearest"), "method must be one of ('bilinear', 'discrete')"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_names_the_argument(wrong):
    change, message = WRONG[wrong]
    good = dict(value=VALUE, locations=LOCATIONS, weights=WEIGHTS, spatial_shapes=SHAPES)
    with pytest.raises(ValueError, match=re.escape(message)):
        ms_deform_attn(**good | change)


def test_discrete_sums_of_no_points_are_zero():
    value, locations = jnp.ones((2, 17, 3, 4)), jnp.ones((2, 5, 3, 3, 0, 2))
    weights = jnp.ones(locations.shape[:-1])
    shapes = ((3, 4), (2, 2), (1, 1))
    y = ms_deform_attn(value, locations, weights, spatial_shapes=shapes, method="discrete")
    np.testing.assert_array_equal(y, np.zeros((2, 5, 12)))
