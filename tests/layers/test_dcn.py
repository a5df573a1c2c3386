# SPDX-License-Identifier: MIT
"""The layers DCNv3 and DCNv4 in both Flaxes: what they compute, start with, refuse and show."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_dcn import dcnv3, linen
from jax_dcn.nnx import DCNv3, DCNv4

FEATURES, GROUPS = 6, 3
X = np.random.default_rng(0).normal(size=(2, 5, 7, FEATURES)).astype(np.float32)
LAYERS = {
    "DCNv3": dict(),
    "DCNv3 of InternImage-H": dict(dw_kernel_size=5, offset_scale=2.0, center_feature_scale=True),
    "DCNv3 without centre": dict(kernel_size=(5, 3), kernel_dilation=(1, 2), remove_center=True),
    "DCNv4": dict(output_bias=False),
    "DCNv4 with all": dict(dw_kernel_size=3, center_feature_scale=True, remove_center=True),
    "DCNv4 of taps alone": dict(without_pointwise=True, softmax=True, kernel_size=(2, 3)),
}


def made(name: str, **options):
    """A layer with random parameters."""
    random = np.random.default_rng(1)
    kind = DCNv4 if name.startswith("DCNv4") else DCNv3
    layer = kind(FEATURES, groups=GROUPS, **LAYERS[name] | options, rngs=nnx.Rngs(0))
    for _, parameter in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        drawn = 0.4 * random.normal(size=parameter.shape)
        parameter[...] += jnp.asarray(drawn, parameter.dtype)
    return layer


def in_linen(tree) -> dict:
    """The names that Linen gives to items of lists: `dw_conv[1][1]` is `dw_conv_1_1`."""
    tree, flat = dict(tree), {}
    if "dw_conv" in tree:
        convolution, norm = tree.pop("dw_conv").values()
        (place,) = norm
        flat = {"dw_conv_0": convolution, f"dw_conv_1_{place}": norm[place]}
    return tree | flat


@pytest.mark.parametrize("name", LAYERS)
def test_both_modules_compute_the_same_from_the_same_parameters(name):
    layer = made(name)
    kind = getattr(linen, type(layer).__name__)
    twin = kind(FEATURES, groups=GROUPS, **LAYERS[name])
    variables = {"params": in_linen(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))}
    expected, expected_sown = nnx.capture(layer, nnx.Intermediate)(X)
    y, sown = twin.apply(variables, X, mutable="intermediates")
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert set(sown["intermediates"]) == set(expected_sown) == {"sampling_positions", "weights"}
    positions, weights = layer.sampling_positions(X)
    for values in (
        twin.apply(variables, X, method="sampling_positions"),
        [expected_sown[n].get_value()[0] for n in ("sampling_positions", "weights")],
        [sown["intermediates"][n][0] for n in ("sampling_positions", "weights")],
    ):
        np.testing.assert_allclose(values[0], positions, atol=1e-5)
        np.testing.assert_allclose(values[1], weights, atol=1e-5)
    shapes = jax.eval_shape(lambda: twin.init(jax.random.key(0), X)["params"])
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_operator_of_what_it_predicts(name):
    layer, is_third = made(name), name.startswith("DCNv3")
    dense = lambda layer, x: x if layer is None else np.asarray(layer(x))
    offset, mask = layer.offset_and_mask(X)
    projected = dense(layer.input_proj if is_third else layer.value_proj, X)
    names = ("kernel_size", "kernel_dilation", "offset_scale", "remove_center")
    options = {n: LAYERS[name][n] for n in names if n in LAYERS[name]}
    y = np.asarray(dcnv3(projected, offset, mask, **options))
    if layer.center_feature_scale:
        features = y
        if is_third:
            convolution, norms = layer.dw_conv
            features = np.asarray(jax.nn.gelu(norms[1](convolution(X)), approximate=False))
        weight = np.asarray(layer.center_feature_scale_proj_weight[...])
        bias = np.asarray(layer.center_feature_scale_proj_bias[...])
        share = np.repeat(1 / (1 + np.exp(-features @ weight.T - bias)), FEATURES // GROUPS, -1)
        y = y * (1 - share) + projected * share
    np.testing.assert_allclose(layer(X), dense(layer.output_proj, y), atol=1e-5)
    normalised = is_third or layer.softmax
    assert bool(np.allclose(mask.sum(-1), 1, atol=1e-5)) == normalised
    assert offset.shape == (*mask.shape, 2)


def test_fresh_dcnv3_takes_the_mean_of_the_grid():
    layer = DCNv3(FEATURES, groups=GROUPS, center_feature_scale=True, rngs=nnx.Rngs(0))
    padded = np.pad(np.asarray(layer.input_proj(X)), [(0, 0), (1, 1), (1, 1), (0, 0)])
    mean = sum(padded[:, i : i + 5, j : j + 7] for i in range(3) for j in range(3)) / 9
    half = (mean + padded[:, 1:-1, 1:-1]) / 2  # the centre's share starts at one half
    np.testing.assert_allclose(layer(X), layer.output_proj(half), atol=1e-5)


def test_fresh_dcnv4_gives_its_bias():
    layer = DCNv4(FEATURES, groups=GROUPS, rngs=nnx.Rngs(0))
    layer.output_proj.bias[...] = jnp.arange(FEATURES, dtype=jnp.float32)
    np.testing.assert_array_equal(layer(X), np.broadcast_to(np.arange(FEATURES), X.shape))


def test_fresh_depthwise_convolutions_are_pytorchs():
    for convolution in (
        DCNv3(64, dw_kernel_size=(5, 3), rngs=nnx.Rngs(0)).dw_conv[0],
        DCNv4(64, dw_kernel_size=(5, 3), rngs=nnx.Rngs(0)).offset_mask_dw,
    ):
        assert convolution.kernel.shape == (5, 3, 1, 64)
        for parameter in (convolution.kernel, convolution.bias):
            bound = float(abs(parameter[...]).max())
            assert 0.9 * 15**-0.5 < bound <= 15**-0.5 and float(parameter[...].min()) < 0


def test_positions_are_pixels_of_the_stretched_grid_width_first():
    layer = DCNv3(FEATURES, groups=1, offset_scale=2.0, rngs=nnx.Rngs(0))
    layer.offset.bias[...] = jnp.tile(
        jnp.asarray([0.5, 0.25], jnp.float32), 9
    )  # (x, y), then stretched
    positions, _ = layer.sampling_positions(X)
    taps = [(2 * i, 2 * j) for j in (-1, 0, 1) for i in (-1, 0, 1)]
    expected = [(2 + y + 0.5, 4 + x + 1.0) for y, x in taps]
    np.testing.assert_allclose(positions[0, 2, 4, 0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["DCNv3", "DCNv4"])
def test_offsets_of_bfloat16_layers_are_float32(name):
    layer = made(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    branch = layer.offset if name == "DCNv3" else layer.offset_mask
    branch.bias[...] = jnp.full(branch.bias.shape, 20.25, jnp.bfloat16)
    branch.kernel[...] = jnp.full(branch.kernel.shape, 2.0**-9, jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # which Flax's norm needs
        (offset, mask), y = layer.offset_and_mask(x), layer(x)
    assert offset.dtype == mask.dtype == jnp.float32
    steps = abs(np.asarray(offset) - 20.25)
    assert 0 < steps.max() < 0.06  # half a step of bfloat16 at 20.25
    assert y.dtype == jnp.bfloat16


def test_batch_norm_follows_the_mode():
    layer = DCNv3(FEATURES, groups=GROUPS, norm="batch", rngs=nnx.Rngs(0))
    twin = linen.DCNv3(FEATURES, groups=GROUPS, norm="batch")
    params = in_linen(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    # A kernel, so that offsets depend on the norm.
    params["offset"]["kernel"] = jnp.ones_like(params["offset"]["kernel"])
    layer.offset.kernel[...] = params["offset"]["kernel"]
    stats = {"dw_conv_1_0": {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}}
    stats = jax.tree.map(lambda a: a.astype(jnp.float32), stats)
    variables = {"params": params, "batch_stats": stats}
    trained, updates = twin.apply(variables, X, use_running_average=False, mutable="batch_stats")
    np.testing.assert_allclose(layer(X), trained, atol=1e-5)
    moved = updates["batch_stats"]["dw_conv_1_0"]["mean"]
    np.testing.assert_allclose(layer.dw_conv[1][0].mean[...], moved, atol=1e-6)
    # A picture of the samples shows the trained statistics, and does not change them.
    expected = twin.apply(variables | updates, X, method="sampling_positions")[0]
    np.testing.assert_allclose(layer.sampling_positions(X)[0], expected, atol=1e-5)
    np.testing.assert_allclose(layer.dw_conv[1][0].mean[...], moved, atol=1e-6)
    layer.eval()
    evaluated = twin.apply(variables | updates, X, use_running_average=True)
    np.testing.assert_allclose(layer(X), evaluated, atol=1e-5)
    assert abs(evaluated - trained).max() > 0.01


WRONG = {
    "groups": (dict(groups=4), "groups=4 must divide features=6"),
    "centre": (
        dict(kernel_size=(3, 2), remove_center=True),
        "remove_center needs a kernel with a tap in the centre",
    ),
    "dw_kernel_size": (dict(dw_kernel_size=0), "dw_kernel_size must be a positive integer"),
}
WRONG_OF_ONE = {
    "act": (DCNv3, dict(act="GELU"), "act must be a function"),
    "norm": (DCNv3, dict(norm="LN"), "norm must be one of ('layer', 'batch')"),
    "output_bias": (
        DCNv4,
        dict(without_pointwise=True, output_bias=False),
        "output_bias has no effect with without_pointwise=True",
    ),
}
ALL_WRONG = [(kind, *row) for row in WRONG.values() for kind in (DCNv3, DCNv4)]
ALL_WRONG += WRONG_OF_ONE.values()


@pytest.mark.parametrize("kind, change, message", ALL_WRONG)
def test_wrong_options_are_refused_when_the_layer_is_made(kind, change, message):
    options = dict(groups=GROUPS) | change
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(FEATURES, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(linen, kind.__name__)(FEATURES, **options)


def calls(kind, *arguments, **options):
    """A call of a layer, and of its twin in Linen."""
    yield lambda: kind(FEATURES, groups=GROUPS, rngs=nnx.Rngs(0))(*arguments, **options)
    twin = getattr(linen, kind.__name__)(FEATURES, groups=GROUPS)
    yield lambda: twin.init(jax.random.key(0), *arguments, **options)


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_sequences_of_pixels_with_a_shape_are_refused_with_the_remedy(kind):
    """The published layers of FlashInternImage are called with `[N, H * W, C]` and a shape."""
    sequence = X.reshape(2, 35, FEATURES)
    remedy = re.escape("write x.reshape(N, H, W, features) for the published [N, H * W, features]")
    for call in (*calls(kind, sequence, (5, 7)), *calls(kind, sequence, shape=(5, 7))):
        with pytest.raises(TypeError, match=remedy):
            call()
    assert "an array of three axes is read as one image" in " ".join(DCNv4.__doc__.split())
    layer = kind(FEATURES, groups=GROUPS, rngs=nnx.Rngs(0))
    assert layer(sequence).shape == sequence.shape  # one image of 2 by 35 pixels


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
@pytest.mark.parametrize(
    "x, hint",
    [
        (np.moveaxis(X, -1, -3), "x looks like [..., C, H, W]: write jnp.moveaxis(x, -3, -1)."),
        (X.reshape(-1, FEATURES), "Pixels need two axes: write x.reshape(H, W, 6)."),
    ],
)
def test_other_layouts_of_images_are_recognised(kind, x, hint):
    for call in calls(kind, x):
        with pytest.raises(ValueError, match=re.escape(hint)):
            call()


@pytest.mark.parametrize("kind", [DCNv3, DCNv4, linen.DCNv3, linen.DCNv4])
@pytest.mark.parametrize("name", ["stride", "strides", "pad", "padding"])
def test_options_of_the_published_layers_without_a_counterpart_say_so(kind, name):
    with pytest.raises(TypeError, match=f"no argument {name}=: the output has the size of the"):
        kind(FEATURES, **{name: 1})


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_bad_input_names_the_argument(kind):
    layer = kind(FEATURES, groups=GROUPS, rngs=nnx.Rngs(0))
    twin = getattr(linen, kind.__name__)(FEATURES, groups=GROUPS)
    for x in (X[..., 1:], X[0, 0], X[:, :0]):
        with pytest.raises(ValueError, match=re.escape("x must be [..., H, W, 6] with pixels")):
            layer(x)
        with pytest.raises(ValueError, match=re.escape("x must be [..., H, W, 6] with pixels")):
            twin.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="no argument channels=: write features= instead"):
        kind(channels=64, rngs=nnx.Rngs(0))
