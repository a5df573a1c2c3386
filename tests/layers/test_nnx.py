# SPDX-License-Identifier: MIT
"""The Flax NNX module."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jax_dcn
from jax_dcn.nnx import DeformConv, is_offset_branch

OPTIONS = dict(
    kernel_size=(3, 2),
    strides=(2, 1),
    padding=((1, 0), (2, 1)),
    kernel_dilation=(1, 2),
    feature_group_count=2,
)


def images(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (3, 9, 8, 6), jnp.float32)


def layer(**options) -> DeformConv:
    return DeformConv(6, 10, **(OPTIONS | options), rngs=nnx.Rngs(0))


def displaced(layer: DeformConv) -> DeformConv:
    """The same layer with a trained offset branch: anything but zeros."""
    kernel = layer.offset_conv.kernel
    kernel[...] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype)
    return layer


@pytest.mark.parametrize("options", [dict(modulated=False), dict(mask_scale=2.0)])
def test_fresh_layer_equals_ordinary_convolution(options):
    deformable = layer(offset_groups=3, **options)
    ordinary = nnx.Conv(6, 10, **OPTIONS, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(deformable(images()), ordinary(images()), atol=1e-5)


def test_layer_draws_as_many_random_numbers_as_an_ordinary_convolution():
    rngs, ordinary_rngs = nnx.Rngs(0), nnx.Rngs(0)
    DeformConv(6, 10, **OPTIONS, rngs=rngs)
    nnx.Conv(6, 10, **OPTIONS, rngs=ordinary_rngs)
    assert (rngs.params() == ordinary_rngs.params()).all()


def test_fresh_layer_of_the_paper_halves_the_output():
    np.testing.assert_allclose(2 * layer()(images()), layer(mask_scale=2.0)(images()), atol=1e-5)


def test_layer_is_the_operator_of_what_it_predicts():
    module = displaced(layer(offset_groups=2))
    offset, mask = module.offset_and_mask(images())
    assert offset.shape == (3, 4, 9, 2, 6, 2) and mask.shape == (3, 4, 9, 2, 6)
    options = {k: v for k, v in OPTIONS.items() if k != "kernel_size"}
    expected = jax_dcn.deform_conv2d(
        images(), module.kernel[...], offset, mask, module.bias[...], **options
    )
    np.testing.assert_array_equal(module(images()), expected)


def test_offset_channels_are_those_of_published_checkpoints():
    module = layer(offset_groups=2)
    bias = jnp.arange(2 * 6 * 3, dtype=jnp.float32)
    module.offset_conv.bias[...] = bias
    offset, mask = module.offset_and_mask(images())
    # All offsets first, (dy, dx) of group 0's tap 0, of its tap 1, ...; then all mask logits.
    np.testing.assert_array_equal(offset[0, 0, 0], bias[:24].reshape(2, 6, 2))
    np.testing.assert_allclose(mask[0, 0, 0], jax.nn.sigmoid(bias[24:].reshape(2, 6)), rtol=1e-6)


def test_sampling_positions_are_grid_plus_offset():
    module = displaced(layer(modulated=False))
    positions, mask = module.sampling_positions(images())
    assert mask is None
    offset, _ = module.offset_and_mask(images())
    for (oy, ox), (i, j) in [((0, 0), (0, 0)), ((2, 5), (1, 1)), ((3, 8), (2, 0))]:
        base = (oy * 2 - 1 + i * 1, ox * 1 - 2 + j * 2)
        expected = offset[:, oy, ox, 0, i * 2 + j] + jnp.asarray([base], jnp.float32)
        np.testing.assert_allclose(positions[:, oy, ox, 0, i * 2 + j], expected, atol=1e-5)


def test_positions_are_captured_in_networks_of_layers():
    network = nnx.List([displaced(layer()), displaced(DeformConv(10, 4, 3, rngs=nnx.Rngs(1)))])
    forward = lambda network, x: network[1](network[0](x))
    _, sown = nnx.capture(forward, nnx.Intermediate)(network, images())
    for index, x in enumerate([images(), network[0](images())]):
        positions, mask = network[index].sampling_positions(x)
        offset, _ = network[index].offset_and_mask(x)
        expected = {"sampling_positions": positions, "mask": mask, "offset": offset}
        for name, value in expected.items():
            np.testing.assert_array_equal(sown[index][name][0], value)


def test_calls_leave_nothing_in_the_layer():
    module = layer()
    before = nnx.state(module)
    module(images())
    nnx.capture(module, nnx.Intermediate)(images())
    assert jax.tree.structure(nnx.state(module)) == jax.tree.structure(before)


def test_bfloat16_layer_keeps_float32_parameters_and_positions():
    module = displaced(layer(dtype=jnp.bfloat16))
    y, expected = module(images()), displaced(layer())(images())
    assert y.dtype == jnp.bfloat16 and module.sampling_positions(images())[0].dtype == jnp.float32
    gradient = nnx.grad(lambda m: jnp.mean(m(images()).astype(jnp.float32) ** 2))(module)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    # Offsets of about one pixel are rounded to 1/256 of their size, and move values of about one.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.1)


def test_parameters_may_be_narrow():
    module = layer(param_dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("bfloat16")}
    assert module(images().astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_offset_branch_trains_with_a_tenth_of_the_learning_rate():
    module = displaced(layer())
    gradient = nnx.grad(lambda m: jnp.mean(m(images()) ** 2))(module)
    slower = optax.chain(optax.sgd(0.1), optax.masked(optax.scale(0.1), is_offset_branch))
    labelled = optax.multi_transform(
        {False: optax.sgd(0.1), True: optax.sgd(0.01)}, is_offset_branch
    )
    for transformation in (slower, labelled):
        trained = displaced(layer())
        nnx.Optimizer(trained, transformation, wrt=nnx.Param).update(trained, gradient)
        for path, rate in [(("kernel",), 0.1), (("offset_conv", "kernel"), 0.01)]:
            before, after, g = (
                dict(nnx.to_flat_state(nnx.state(tree)))[path][...]
                for tree in (module, trained, gradient)
            )
            assert g.any()
            np.testing.assert_allclose(after, before - rate * g, rtol=1e-5, atol=1e-7)


def test_layer_trains_under_jit():
    module = displaced(layer())
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(module, optimizer, images())) for _ in range(5)]
    assert losses[-1] < losses[0]
    moved = module.offset_conv.kernel[...] - displaced(layer()).offset_conv.kernel[...]
    assert jnp.any(moved != 0)


def test_parameters_are_named_as_those_of_an_ordinary_convolution():
    parameters = nnx.to_pure_dict(nnx.state(layer(), nnx.Param))
    assert set(parameters) == {"kernel", "bias", "offset_conv"}
    assert set(parameters["offset_conv"]) == {"kernel", "bias"}
    assert layer(use_bias=False).bias is None


def test_unbatched_images_work():
    module = displaced(layer())
    np.testing.assert_allclose(module(images()[0]), module(images())[0], atol=1e-6)


def test_a_list_of_precisions_can_be_hashed():
    layer = DeformConv(4, 5, 3, precision=["high", "highest"], rngs=nnx.Rngs(0))
    assert hash(nnx.graphdef(layer)) == hash(nnx.graphdef(nnx.clone(layer)))
