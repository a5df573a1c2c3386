# SPDX-License-Identifier: MIT
"""The options of the layers in both Flaxes: branches, guides, paddings, dtypes and refusals."""

import copy
import itertools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jax_dcn
from jax_dcn.linen import DeformConv as LinenConv, DeformRoIPool as LinenPool
from jax_dcn.nnx import DCNv3, DCNv4, DeformConv, DeformRoIPool, MSDeformAttn

X = jax.random.normal(jax.random.key(0), (2, 7, 6, 4), jnp.float32)


def in_linen(layer: DeformConv, **options):
    """The twin of an NNX layer, as a function of the arguments of its call."""
    twin = LinenConv(layer.out_features, layer.kernel_size, layer.strides, **options)
    arrays = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    return lambda *args, **named: twin.apply({"params": arrays}, *args, **named)


def trained(layer: DeformConv) -> DeformConv:
    kernel = layer.offset_conv.kernel
    kernel[...] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype)
    return layer


PADDINGS = ["same", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", np.int64(1)]


@pytest.mark.parametrize("padding, strides", list(itertools.product(PADDINGS, [None, 2])))
def test_fresh_layer_equals_ordinary_convolution_with_every_padding(padding, strides):
    options = dict(strides=strides, kernel_dilation=(2, 1))
    layer = DeformConv(4, 6, (2, 3), padding=padding, mask_scale=2.0, **options, rngs=nnx.Rngs(0))
    known = padding if isinstance(padding, str) else int(padding)
    ordinary = nnx.Conv(4, 6, (2, 3), padding=known, **options, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(X), ordinary(X), atol=1e-5)
    twin = in_linen(layer, padding=padding, mask_scale=2.0, kernel_dilation=(2, 1))
    np.testing.assert_allclose(twin(X), ordinary(X), atol=1e-5)


def test_positions_with_circular_padding_are_pixels_of_the_image():
    layer = DeformConv(4, 6, 3, padding="CIRCULAR", rngs=nnx.Rngs(0))
    same = DeformConv(4, 6, 3, padding="SAME", rngs=nnx.Rngs(0))
    positions, _ = layer.sampling_positions(X)
    np.testing.assert_array_equal(positions, same.sampling_positions(X)[0])


def test_layer_without_a_branch_takes_offsets():
    predicting = trained(DeformConv(4, 6, 3, offset_groups=2, rngs=nnx.Rngs(0)))
    taking = DeformConv(4, 6, 3, offset_groups=2, offset_branch=False, rngs=nnx.Rngs(0))
    offset, mask = predicting.offset_and_mask(X)
    np.testing.assert_array_equal(taking(X, offset, mask), predicting(X))
    twin = in_linen(taking, offset_groups=2, offset_branch=False)
    np.testing.assert_array_equal(twin(X, offset, mask), predicting(X))
    assert set(nnx.to_pure_dict(nnx.state(taking))) == {"kernel", "bias"}
    assert taking(X, offset).shape == (2, 7, 6, 6)


def test_guide_predicts_the_offsets():
    guide = jax.random.normal(jax.random.key(2), (2, 7, 6, 5), jnp.float32)
    layer = trained(DeformConv(4, 6, 3, guide_features=5, rngs=nnx.Rngs(0)))
    offset, mask = layer.offset_and_mask(X, guide=guide)
    taking = DeformConv(4, 6, 3, offset_branch=False, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(X, guide=guide), taking(X, offset, mask))
    twin = in_linen(layer, guide_features=5)
    np.testing.assert_array_equal(twin(X, guide=guide), layer(X, guide=guide))
    own = trained(DeformConv(4, 6, 3, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(own(X, guide=X), own(X))


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_offsets_of_a_bfloat16_layer_are_float32(param_dtype):
    options = dict(dtype=jnp.bfloat16, param_dtype=param_dtype)
    layer = DeformConv(4, 6, 3, **options, rngs=nnx.Rngs(0))
    layer.offset_conv.bias[...] = jnp.full(27, 20.3, param_dtype)
    offset, mask = layer.offset_and_mask(X.astype(jnp.bfloat16))
    assert offset.dtype == mask.dtype == jnp.float32
    expected = jnp.asarray(20.3, param_dtype).astype("float32")
    np.testing.assert_array_equal(offset, jnp.broadcast_to(expected, offset.shape))
    assert layer(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    narrow = DeformConv(4, 6, 3, offset_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert narrow.offset_and_mask(X)[0].dtype == jnp.bfloat16


def test_layer_has_the_attributes_of_an_ordinary_convolution():
    layer = DeformConv(4, 6, 3, rngs=nnx.Rngs(0))
    ordinary = nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0))
    for name in ("in_features", "out_features", "use_bias", "param_dtype", "feature_group_count"):
        assert getattr(layer, name) == getattr(ordinary, name)
    assert "offset_groups=1" in repr(layer) and "boundary='padded'" in repr(layer)


def test_positions_and_offsets_are_inverses():
    offset = jax.random.normal(jax.random.key(3), (2, 4, 3, 2, 6, 2), jnp.float32)
    options = dict(kernel_size=(3, 2), strides=2, image_size=(7, 6))
    positions = jax_dcn.sampling_positions(offset, **options)
    np.testing.assert_allclose(
        jax_dcn.offset_from_positions(positions, **options), offset, atol=1e-6
    )
    rows = np.arange(4)[:, None] * 2 - 1 + np.repeat(np.arange(3), 2)
    expected = rows[None, :, None, None, :] + np.asarray(offset)[..., 0]
    np.testing.assert_allclose(positions[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("options", [dict(), dict(modulated=False), dict(joint=True)])
@pytest.mark.parametrize("aligned", [False, True])
def test_pooling_no_regions_gives_no_results(options, aligned):
    rois = jnp.zeros((0, 5), jnp.float32)
    sizes = dict(spatial_scale=0.5, hidden_features=3, aligned=aligned, **options)
    assert DeformRoIPool(4, 2, **sizes, rngs=nnx.Rngs(0))(X, rois).shape == (0, 2, 2, 4)
    y, _ = LinenPool(4, 2, **sizes).init_with_output(jax.random.key(0), X, rois)
    assert y.shape == (0, 2, 2, 4)


WRONG = [
    (dict(kernel_size=(3,)), "kernel_size must be a positive integer or a pair"),
    (dict(kernel_size=(3, 3, 3)), "kernel_size must be"),
    (dict(kernel_size=0), "kernel_size must be"),
    (dict(strides=(1,)), "strides must be"),
    (
        dict(padding="causal"),
        'padding must be "SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", an integer >= 0',
    ),
    (dict(boundary="reflect"), "boundary must be one of"),
    (dict(precision="bogus"), "precision must be"),
    (dict(offset_groups=3), "offset_groups=3 must divide in_features=4"),
    (dict(feature_group_count=3), "feature_group_count=3 must divide"),
    (dict(modulated=False, mask_scale=2.0), "mask_scale has no effect with modulated=False"),
    (dict(offset_branch=False, guide_features=3), "guide_features has no effect"),
    (dict(offset_branch=False, offset_dtype="float32"), "offset_dtype has no effect"),
]


@pytest.mark.parametrize("options, message", WRONG, ids=str)
def test_options_are_checked_when_the_layer_is_made(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeformConv(4, 6, **dict(kernel_size=3) | options, rngs=nnx.Rngs(0))
    if "divide" not in message:  # Linen does not know the channels of the images.
        with pytest.raises(ValueError, match=re.escape(message)):
            LinenConv(6, **dict(kernel_size=3) | options)


WRONG_POOLS = [
    (dict(pooled_size=(7, 3)), "pooled_size must be an integer from 1 to 4096"),
    (dict(pooled_size=4097), "pooled_size must be an integer from 1 to 4096"),
    (dict(group_size=4097), "group_size must be an integer from 1 to 4096"),
    (dict(samples_per_part=0), "samples_per_part must be an integer from 1 to 4096"),
    (dict(aligned=True, samples_per_part=4097), "samples_per_part must be an integer from 0 to 40"),
    (dict(spatial_scale=-0.5), "spatial_scale must be positive, got -0.5"),
    (dict(trans_std=0.0), "trans_std=0 gives the offsets no effect"),
    (dict(joint=True, modulated=False), "joint has no effect"),
    (dict(deformable=False, hidden_features=3), "hidden_features has no effect with deformable=F"),
    (dict(aligned=True, group_size=2), "group_size has no effect with aligned=True"),
]


@pytest.mark.parametrize("options, message", WRONG_POOLS, ids=str)
def test_options_are_checked_when_the_pool_is_made(options, message):
    options = dict(output_dim=4, pooled_size=2, spatial_scale=0.5) | options
    with pytest.raises(ValueError, match=re.escape(message)):
        DeformRoIPool(**options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        LinenPool(**options)


@pytest.mark.parametrize("name", ["stride", "dilation", "groups", "pad", "deform_groups"])
def test_names_of_other_libraries_are_translated(name):
    makers = [
        lambda **options: DeformConv(4, 6, 3, **options, rngs=nnx.Rngs(0)),
        lambda **options: LinenConv(6, 3, **options),
    ]
    if name != "deform_groups":
        makers.append(lambda **options: jax_dcn.deform_conv2d(X, None, None, **options))
    for make in makers:
        with pytest.raises(TypeError, match=f"no argument {name}=: write .*= instead"):
            make(**{name: 1})


POOL_NAMES = [
    ("output_size", "write pooled_size= instead"),
    ("sampling_ratio", "write samples_per_part= instead"),
    ("gamma", "write trans_std= instead"),
    ("out_channels", "write output_dim= instead"),
    ("deform_fc_dim", "write hidden_features= instead"),
    ("no_trans", "write deformable=False"),
]
PUBLISHED_NAMES = [
    (jax_dcn.deform_conv2d, "input", "write x= instead"),
    (jax_dcn.deform_conv2d, "weight", "write kernel= instead"),
    (jax_dcn.deform_conv2d, "deformable_groups", "the axis G of offset says how many groups"),
    (jax_dcn.deform_conv2d, "deform_groups", "the axis G of offset says how many groups"),
    (jax_dcn.deform_conv2d, "im2col_step", "the whole batch is computed at once"),
    (jax_dcn.deform_roi_pool, "sampling_ratio", "write samples_per_part= instead"),
    (jax_dcn.deform_roi_pool, "no_trans", "leave out the offset"),
    (jax_dcn.deform_roi_align, "boxes", "write rois= instead"),
    (jax_dcn.deform_roi_align, "output_size", "write pooled_size= instead"),
    (jax_dcn.deform_roi_align, "trans_std", "write gamma= instead"),
    (jax_dcn.ms_deform_attn, "sampling_locations", "write locations= instead"),
    (jax_dcn.ms_deform_attn, "level_start_index", "levels begin where spatial_shapes says"),
    (jax_dcn.grid_sample, "input", "write x= instead"),
    *((DeformRoIPool, *row) for row in POOL_NAMES),
    *((LinenPool, *row) for row in POOL_NAMES),
]


@pytest.mark.parametrize("function, name, answer", PUBLISHED_NAMES)
def test_names_of_published_functions_and_pools_are_translated(function, name, answer):
    with pytest.raises(TypeError, match=f"no argument {name}=: {answer}"):
        function(**{name: 1})


def test_calls_that_do_not_fit_name_the_argument():
    layer = DeformConv(4, 6, 3, rngs=nnx.Rngs(0))
    taking = DeformConv(4, 6, 3, offset_branch=False, modulated=False, rngs=nnx.Rngs(0))
    grouped = DeformConv(4, 6, 3, offset_branch=False, offset_groups=4, rngs=nnx.Rngs(0))
    offset = jnp.zeros((2, 7, 6, 1, 9, 2), jnp.float32)
    for call, message in [
        (lambda: layer(X[..., 1:]), "for in_features=4, got shape (2, 7, 6, 3)"),
        (lambda: layer([[1.0]]), "x must be [..., H, W, 4] for in_features=4, got shape (1, 1)"),
        (
            lambda: LinenConv(6, 3).init(jax.random.key(0), X[0, 0]),
            "x must be [..., H, W, C], got shape (6, 4)",
        ),
        (lambda: layer(X, offset), "offset is predicted by the layer"),
        (lambda: layer(X, guide=X[:, 1:]), "guide must have the size of x"),
        (
            lambda: layer(X, guide=jnp.ones((*X.shape[:-1], 7))),
            "the channels that guide_features gives",
        ),
        (lambda: taking(X), "offset is required"),
        (lambda: taking(X, offset, offset[..., 0]), "modulated=False"),
        (lambda: taking.offset_and_mask(X), "offset_branch=False"),
        (
            lambda: grouped(X, offset),
            "offset must be [..., Ho, Wo, G, K, 2] with G=offset_groups=4",
        ),
        (lambda: LinenConv(6, 3, feature_group_count=3).init(jax.random.key(0), X), "must divide"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_layers_export_with_free_height_and_width():
    n, h, w = jax.export.symbolic_shape("n, h, w")
    for padding, strides in [("SAME", 2), (1, 1)]:
        layer = trained(DeformConv(4, 6, 3, strides, padding=padding, rngs=nnx.Rngs(0)))
        exported = jax.export.export(
            jax.jit(layer), disabled_checks=jax_dcn.export_disabled_checks
        )(jax.ShapeDtypeStruct((n, h, w, 4), X.dtype))
        np.testing.assert_allclose(exported.call(X), layer(X), atol=1e-5)
        np.testing.assert_allclose(exported.call(X[:1, 1:, 2:]), layer(X[:1, 1:, 2:]), atol=1e-5)


def test_linen_layer_initialises_without_a_branch():
    twin = LinenConv(6, 3, offset_branch=False)
    variables = twin.init(jax.random.key(0), X, jnp.zeros((2, 7, 6, 1, 9, 2)))
    assert set(variables["params"]) == {"kernel", "bias"} and isinstance(twin, linen.Module)


# ------------------------------------------------------------------------- layers of NNX as values


def normal() -> nnx.Initializer:
    """Another function object with every call."""
    return nnx.initializers.normal(0.1)


# A layer, with options as lists where a list is possible.
VALUES = {
    "DeformConv": lambda listed: DeformConv(
        4,
        6,
        listed(2, 3),
        listed(1, 2),
        padding=listed(listed(1, 0), listed(1, 1)),
        kernel_dilation=listed(2, 1),
        kernel_init=normal(),
        bias_init=normal(),
        implementation=["native", "xla"],
        rngs=nnx.Rngs(0),
    ),
    "MSDeformAttn": lambda listed: MSDeformAttn(
        4, heads=2, levels=2, points=listed(3, 1), rngs=nnx.Rngs(0)
    ),
    "DCNv3": lambda listed: DCNv3(
        4, kernel_size=listed(3, 1), dw_kernel_size=listed(1, 3), rngs=nnx.Rngs(0)
    ),
    "DCNv4": lambda listed: DCNv4(
        4, kernel_size=listed(3, 1), kernel_dilation=listed(1, 2), rngs=nnx.Rngs(0)
    ),
    "DeformRoIPool": lambda listed: DeformRoIPool(
        4, 2, spatial_scale=0.5, hidden_features=3, kernel_init=normal(), rngs=nnx.Rngs(0)
    ),
}
every_layer = pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)


def as_tuple(*values):
    return values


@every_layer
@pytest.mark.parametrize(
    "listed", [lambda *v: list(v), lambda *v: np.array(v)], ids=["list", "array"]
)
def test_options_as_lists_are_those_as_tuples(make, listed):
    """A jitted function is compiled once for equal layers: graphs have a hash and are equal."""
    (graph, state), (same, _) = nnx.split(make(listed)), nnx.split(make(as_tuple))
    assert hash(graph) == hash(same) and graph == same
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@every_layer
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, nnx.clone, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_layers_are_copied_and_pickled(make, duplicate):
    layer = make(as_tuple)
    same = duplicate(layer)
    assert same is not layer and nnx.split(same)[0] == nnx.split(layer)[0]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(same), nnx.state(layer))
