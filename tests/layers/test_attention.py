# SPDX-License-Identifier: MIT
"""The attention layer in both Flaxes: where it looks, what it starts with, masks, dtypes, refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_dcn import linen, ms_deform_attn
from jax_dcn.nnx import MSDeformAttn

SHAPES = ((5, 7), (3, 2), (1, 1))
FEATURES, HEADS, QUERIES, BATCH, PIXELS = 12, 4, 6, 2, 42
RANDOM = np.random.default_rng(0)
QUERY, VALUE = (RANDOM.normal(size=(BATCH, n, FEATURES)) for n in (QUERIES, PIXELS))
POINTS = RANDOM.uniform(size=(BATCH, QUERIES, 3, 2))
BOXES = np.concatenate([POINTS, RANDOM.uniform(0.1, 0.9, POINTS.shape)], -1)
RAGGED = dict(points=(3, 6, 2))


def made(**options) -> MSDeformAttn:
    """A layer with random parameters in float64."""
    defaults = dict(heads=HEADS, levels=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer = MSDeformAttn(FEATURES, **defaults | options)
    for path, parameter in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        scale = 1.0 if "sampling_offsets" in path and path[-1] == "bias" else 0.3
        drawn = jnp.asarray(scale * RANDOM.normal(size=parameter.shape), parameter.dtype)
        parameter[...] += drawn
    return layer


def expected_locations(layer, offsets, reference, points) -> np.ndarray:
    """The published formulas, level by level."""
    offsets = offsets.reshape(BATCH, QUERIES, HEADS, sum(points), 2)
    found, first = [], 0
    for level, count in enumerate(points):
        of_level = offsets[..., first : first + count, :]
        at = reference[:, :, None, None, level]
        if reference.shape[-1] == 2:
            height, width = SHAPES[level]
            found.append(at + of_level / np.array([width, height]))
        else:
            found.append(at[..., :2] + of_level / count * at[..., 2:] * layer.offset_scale)
        first += count
    return np.concatenate(found, axis=-2)


@pytest.mark.parametrize("reference", [POINTS, BOXES], ids=["points", "boxes"])
@pytest.mark.parametrize("options", [dict(points=2), RAGGED | dict(offset_scale=0.7)], ids=str)
def test_layer_attends_where_the_published_formula_says(options, reference):
    layer = made(**options)
    dense = lambda name, x: np.asarray(getattr(layer, name)(x))
    points = (2, 2, 2) if options["points"] == 2 else options["points"]
    locations = expected_locations(layer, dense("sampling_offsets", QUERY), reference, points)
    logits = dense("attention_weights", QUERY).reshape(BATCH, QUERIES, HEADS, -1)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    value = dense("value_proj", VALUE).reshape(BATCH, PIXELS, HEADS, -1)
    expected = dense(
        "output_proj",
        ms_deform_attn(value, locations, weights, spatial_shapes=SHAPES, points=points),
    )
    actual, sown = nnx.capture(layer, nnx.Intermediate)(
        QUERY, reference, VALUE, spatial_shapes=SHAPES
    )
    np.testing.assert_allclose(sown["locations"][0], locations, atol=1e-13)
    np.testing.assert_allclose(sown["weights"][0], weights, atol=1e-13)
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    seen = layer.locations_and_weights(QUERY, reference, spatial_shapes=SHAPES)
    np.testing.assert_array_equal(seen[0], sown["locations"][0])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        RAGGED | dict(value_projection=False, output_projection=False, dtype=jnp.float32),
        dict(points=1, method="discrete", param_dtype=jnp.bfloat16, dtype=jnp.float32),
    ],
    ids=str,
)
def test_both_modules_compute_the_same_from_the_same_parameters(options):
    layer = made(**options)
    variables = {"params": nnx.to_pure_dict(nnx.state(layer, nnx.Param))}
    options = dict(heads=HEADS, levels=3, param_dtype=jnp.float64) | options
    twin = linen.MSDeformAttn(FEATURES, **options)
    call = dict(spatial_shapes=SHAPES, value_mask=RANDOM.uniform(size=(BATCH, PIXELS)) < 0.5)
    expected, expected_sown = nnx.capture(layer, nnx.Intermediate)(QUERY, BOXES, VALUE, **call)
    y, sown = twin.apply(variables, QUERY, BOXES, VALUE, **call, mutable="intermediates")
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == expected.dtype and set(sown["intermediates"]) == set(expected_sown)
    for name in expected_sown:
        (a,), (e,) = sown["intermediates"][name], expected_sown[name].get_value()
        np.testing.assert_array_equal(a, e)
    shapes = jax.eval_shape(
        lambda: twin.init(jax.random.key(0), QUERY, BOXES, VALUE, **call)["params"]
    )
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes)


def test_fresh_layers_look_around_and_weight_points_equally():
    layer = MSDeformAttn(16, heads=8, levels=2, points=(2, 1), rngs=nnx.Rngs(0))
    arrays = tuple(np.ones(shape, np.float32) for shape in ((1, 16), (1, 2), (9, 16)))
    variables = linen.MSDeformAttn(16, heads=8, levels=2, points=(2, 1)).init(
        jax.random.key(0), *arrays, spatial_shapes=((2, 4), (1, 1))
    )
    ring = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    expected = np.array([[d, [2 * c for c in d], d] for d in ring])
    for tree in (nnx.to_pure_dict(nnx.state(layer, nnx.Param)), variables["params"]):
        np.testing.assert_allclose(
            tree["sampling_offsets"]["bias"].reshape(8, 3, 2), expected, atol=1e-6
        )
        for name in ("sampling_offsets", "attention_weights"):
            assert not tree[name]["kernel"].any()
        assert not tree["attention_weights"]["bias"].any()
        for name in ("value_proj", "output_proj"):
            assert 0.3 < float(abs(tree[name]["kernel"]).max()) <= np.sqrt(6 / 32) + 1e-6
            assert not tree[name]["bias"].any()
    locations, weights = layer.locations_and_weights(*arrays[:2], spatial_shapes=((2, 4), (1, 1)))
    np.testing.assert_allclose(locations[0, 1], [[1.25, 1.5], [1.5, 2], [2, 2]])
    np.testing.assert_allclose(weights, np.full((1, 8, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_references_of_all_levels_may_be_given_once(coordinates):
    layer, reference = made(**RAGGED), BOXES[:, :, :1, :coordinates]
    call = lambda reference: layer(QUERY, reference, VALUE, spatial_shapes=SHAPES)
    repeated = call(np.repeat(reference, 3, axis=2))
    np.testing.assert_array_equal(call(reference), repeated)
    np.testing.assert_array_equal(call(reference[:, :, 0]), repeated)


def test_pixels_that_do_not_count_are_zero_after_the_projection():
    layer, keep = made(), RANDOM.uniform(size=(BATCH, PIXELS)) < 0.5
    masked = layer(QUERY, POINTS, VALUE, spatial_shapes=SHAPES, value_mask=keep)
    projection, layer.value_proj = layer.value_proj, None
    expected = layer(
        QUERY, POINTS, np.where(keep[..., None], projection(VALUE), 0), spatial_shapes=SHAPES
    )
    np.testing.assert_array_equal(masked, expected)
    other = layer(QUERY, POINTS, projection(VALUE), spatial_shapes=SHAPES)
    assert abs(other - masked).max() > 0.1


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_locations_of_bfloat16_layers_are_float32(param_dtype):
    options = dict(dtype=jnp.bfloat16, param_dtype=param_dtype)
    layer = MSDeformAttn(8, heads=1, levels=1, points=1, **options, rngs=nnx.Rngs(0))
    query, reference = jnp.ones((1, 8), jnp.bfloat16), jnp.full((1, 2), 0.7, jnp.float32)
    value = jnp.asarray(np.arange(1000)[:, None].repeat(8, 1) % 2, jnp.bfloat16)
    locations, weights = layer.locations_and_weights(query, reference, spatial_shapes=((1, 1000),))
    np.testing.assert_allclose(locations[0, 0, 0, 0], 0.701, rtol=1e-6)  # one pixel to the right
    assert weights.dtype == jnp.float32
    assert layer(query, reference, value, spatial_shapes=((1, 1000),)).dtype == jnp.bfloat16


def test_unbatched_queries_work():
    layer = made()
    y = layer(QUERY[1], POINTS[1], VALUE[1], spatial_shapes=SHAPES)
    np.testing.assert_allclose(y, layer(QUERY, POINTS, VALUE, spatial_shapes=SHAPES)[1], atol=1e-14)


WRONG_OPTIONS = {
    "heads": (dict(heads=5), "heads=5 must divide features=12"),
    "points": (dict(points=(2, 3)), "points must be a positive integer or one for each of the 3"),
    "no points": (dict(points=(2, 0, 3)), "points must be a positive integer or one for each"),
    "method": (dict(method="nearest"), "method must be one of ('bilinear', 'discrete')"),
}


@pytest.mark.parametrize("wrong", WRONG_OPTIONS)
def test_wrong_options_are_refused_when_the_layer_is_made(wrong):
    change, message = WRONG_OPTIONS[wrong]
    options = dict(heads=HEADS, levels=3) | change
    with pytest.raises(ValueError, match=re.escape(message)):
        MSDeformAttn(FEATURES, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        linen.MSDeformAttn(FEATURES, **options)
    with pytest.raises(TypeError, match="no argument num_heads=: write heads= instead"):
        MSDeformAttn(FEATURES, num_heads=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reference_points", "write reference= instead"),
        ("input_flatten", "write value= instead"),
        ("padding_mask", "write value_mask=~padding_mask instead"),
        ("level_start_index", "levels begin where spatial_shapes says"),
    ],
)
def test_calls_translate_the_names_of_other_libraries(name, answer):
    layer = MSDeformAttn(FEATURES, heads=HEADS, levels=3, rngs=nnx.Rngs(0))
    for called in (layer, linen.MSDeformAttn(FEATURES, heads=HEADS, levels=3)):
        with pytest.raises(TypeError, match=re.escape(f"no argument {name}=: {answer}")):
            called(QUERY, **{name: None})


def test_traced_sizes_of_maps_are_to_be_static():
    layer = MSDeformAttn(FEATURES, heads=HEADS, levels=3, rngs=nnx.Rngs(0))
    f = jax.jit(lambda shapes: layer(QUERY, POINTS, VALUE, spatial_shapes=shapes))
    with pytest.raises(ValueError, match="Make it static: static_argnums or static_argnames"):
        f(np.array(SHAPES))


KEEP = np.ones((BATCH, PIXELS), bool)
WRONG = {
    "query": (dict(query=QUERY[..., 1:]), "query must be [..., Q, 12], got shape (2, 6, 11)"),
    "reference": (dict(reference=POINTS[..., :1]), "reference must be [..., Q, 3, 2 or 4]"),
    "levels": (dict(reference=POINTS[:, :, 1:]), "reference must be [..., Q, 3, 2 or 4]"),
    "queries": (dict(reference=POINTS[:, 1:]), "reference must be [..., Q, 3, 2 or 4]"),
    "value": (dict(value=VALUE[:, 1:]), "value must be [..., S, features] with the batch axes"),
    "spatial_shapes": (
        dict(spatial_shapes=SHAPES[1:]),
        "spatial_shapes must have the size of each of the 3 levels",
    ),
    "value_mask": (dict(value_mask=KEEP[:, 1:]), "value_mask must be True where a pixel of value"),
    "mask dtype": (dict(value_mask=1.0 * KEEP), "expected bool (2, 42), got float64 (2, 42)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_names_the_argument(wrong):
    change, message = WRONG[wrong]
    good = dict(query=QUERY, reference=POINTS, value=VALUE, spatial_shapes=SHAPES)
    layer = MSDeformAttn(FEATURES, heads=HEADS, levels=3, rngs=nnx.Rngs(0))
    twin = linen.MSDeformAttn(FEATURES, heads=HEADS, levels=3)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**good | change)
    with pytest.raises(ValueError, match=re.escape(message)):
        twin.init(jax.random.key(0), **good | change)
