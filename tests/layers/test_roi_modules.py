# SPDX-License-Identifier: MIT
"""`DeformRoIPool` of NNX and Linen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_dcn
import jax_dcn.linen
import jax_dcn.nnx
from jax_dcn.interop import torch_weights

SCALE = 0.25
ROIS = jnp.array([[0, 3, 1, 30, 27], [1, 10, 4, 22, 31], [0, 0, 0, 12, 16]], jnp.float32)
PACKS = [
    dict(deformable=False),
    dict(modulated=False),
    dict(),
    dict(joint=True),
    dict(aligned=True, samples_per_part=0),
    dict(group_size=3),
]


def images(channels: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 9, channels)), jnp.float32)


def arguments(options: dict) -> tuple[jax.Array, jax.Array]:
    return images(4 * options.get("group_size", 1) ** 2), ROIS


def small(options: dict) -> dict:
    """The options, with few hidden features where there are branches."""
    hidden = dict(hidden_features=5) if options.get("deformable", True) else {}
    return dict(spatial_scale=SCALE) | hidden | options


def layer(**options) -> jax_dcn.nnx.DeformRoIPool:
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    return jax_dcn.nnx.DeformRoIPool(4, 3, **small(options), rngs=rngs)


def trained(pool: jax_dcn.nnx.DeformRoIPool) -> jax_dcn.nnx.DeformRoIPool:
    """With anything but zeros in the last layers of the branches."""
    random = np.random.default_rng(1)
    for _, parameter in nnx.to_flat_state(nnx.state(pool, nnx.Param)):
        parameter[...] = jnp.asarray(random.normal(size=parameter.shape), jnp.float32)
    return pool


def branches(pool) -> dict:
    return nnx.to_pure_dict(nnx.state(pool, nnx.Param))


@pytest.mark.parametrize("options", PACKS, ids=str)
def test_fresh_layer_pools_plainly(options):
    pool, (x, rois) = layer(**options), arguments(options)
    modulated = options.get("deformable", True) and options.get("modulated", True)
    if options.get("aligned"):
        plain = jax_dcn.deform_roi_align(x, rois, spatial_scale=SCALE, pooled_size=3)
    else:
        shared = dict(spatial_scale=SCALE, pooled_size=3, output_dim=4)
        plain = jax_dcn.deform_roi_pool(x, rois, group_size=options.get("group_size", 1), **shared)
    np.testing.assert_allclose(pool(x, rois), plain * (0.5 if modulated else 1), atol=1e-6)


def test_branches_are_those_of_the_checkpoints():
    layers = {name: tuple(branch) for name, branch in branches(layer()).items()}
    assert layers == {"offset_fc": (0, 2, 4), "mask_fc": (0, 2)}
    joint = branches(layer(joint=True))["offset_mask_fc"]
    assert [joint[i]["kernel"].shape for i in (0, 2, 4)] == [(36, 5), (5, 5), (5, 27)]
    assert set(branches(layer(modulated=False))) == {"offset_fc"}
    assert branches(layer(deformable=False)) == {}


@pytest.mark.parametrize("options", PACKS[1:4], ids=str)
def test_layer_is_the_operator_of_what_it_predicts(options):
    pool = trained(layer(**options))
    offset, mask = pool.offset_and_mask(images(), ROIS)
    assert offset.shape == (3, 3, 3, 1, 2) and np.ptp(offset) > 0.1
    shared = dict(spatial_scale=SCALE, pooled_size=3, output_dim=4)
    expected = jax_dcn.deform_roi_pool(images(), ROIS, offset, mask, trans_std=0.1, **shared)
    np.testing.assert_array_equal(pool(images(), ROIS), expected)
    # By planes of x, of y, and of the mask, from pooled features by channel, row and column.
    plain = jax_dcn.deform_roi_pool(images(), ROIS, **shared)
    hidden, parameters = plain.transpose(0, 3, 1, 2).reshape(3, -1), branches(pool)
    weights = parameters["offset_mask_fc" if options.get("joint") else "offset_fc"]
    for i in (0, 2, 4):
        hidden = (jax.nn.relu(hidden) if i else hidden) @ weights[i]["kernel"]
        hidden += weights[i]["bias"][None, :]
    np.testing.assert_allclose(offset[..., 0, 1].reshape(3, -1), hidden[:, :9], atol=1e-4)
    np.testing.assert_allclose(offset[..., 0, 0].reshape(3, -1), hidden[:, 9:18], atol=1e-4)
    if options.get("joint"):
        expected_mask = jax.nn.sigmoid(hidden[:, 18:]).reshape(3, 3, 3)
        np.testing.assert_allclose(mask, expected_mask, atol=1e-5)


def test_what_a_layer_shows_is_what_the_layer_computes():
    pool = trained(layer(dtype=jnp.bfloat16))
    narrow = images().astype(jnp.bfloat16)
    np.testing.assert_array_equal(*(pool.offset_and_mask(x, ROIS)[0] for x in (images(), narrow)))
    for method in (pool, pool.offset_and_mask, pool.sampling_positions):
        with pytest.raises(ValueError, match=re.escape("x must be [N, H, W, 4] for output_dim=4")):
            method(images(3), ROIS)


@pytest.mark.parametrize("options", PACKS, ids=str)
def test_linen_is_the_twin_of_nnx(options):
    pool, (x, rois) = trained(layer(**options)), arguments(options)
    twin = jax_dcn.linen.DeformRoIPool(4, 3, **small(options))
    shapes = jax.eval_shape(twin.init, jax.random.key(0), x, rois)
    parameters = {
        f"{name}_{i}": layer
        for name, branch in branches(pool).items()
        for i, layer in branch.items()
    }
    assert jax.tree.map(jnp.shape, parameters) == jax.tree.map(jnp.shape, shapes.get("params", {}))
    y = twin.apply({"params": parameters}, x, rois)
    np.testing.assert_array_equal(y, pool(x, rois))


@pytest.mark.parametrize("options", PACKS[1:4], ids=str)
def test_weights_of_published_packs_are_found_by_name(options):
    # Linear layers of 36 pooled features, as `state_dict` of the packs of the original and of mmcv
    # has them under the name that the pack has in its network.
    random, weights = np.random.default_rng(2), {}
    for name, branch in branches(layer(**options)).items():
        for i, linear in branch.items():
            weights[f"head.{name}.{i}.weight"] = random.normal(size=linear["kernel"].shape[::-1])
            weights[f"head.{name}.{i}.bias"] = random.normal(size=linear["bias"].shape)
    pool = layer(**options)
    nnx.update(pool, torch_weights.to_flax(weights, nnx.state(pool), prefix="head."))
    for name, branch in branches(pool).items():
        for i, linear in branch.items():
            expected = weights[f"head.{name}.{i}.weight"].T.astype(np.float32)
            np.testing.assert_array_equal(linear["kernel"], expected)
    twin = jax_dcn.linen.DeformRoIPool(4, 3, **small(options))
    like = jax.eval_shape(twin.init, jax.random.key(0), images(), ROIS)
    variables = torch_weights.to_flax(weights, like, prefix="head.")
    np.testing.assert_array_equal(twin.apply(variables, images(), ROIS), pool(images(), ROIS))


@pytest.mark.parametrize(("aligned", "samples"), [(False, 2), (True, 2), (True, 0)])
def test_sampled_positions_are_those_that_are_averaged(aligned, samples):
    # An image whose value is its row plus a hundred times its column averages to its positions'.
    rows, columns = jnp.meshgrid(jnp.arange(40.0), jnp.arange(50.0), indexing="ij")
    x = jnp.broadcast_to((rows + 100 * columns)[None, :, :, None], (2, 40, 50, 4))
    x = jnp.asarray(x, jnp.float32)
    options = dict(aligned=aligned, samples_per_part=samples, trans_std=1e-7)
    pool = trained(layer(modulated=False, **options))
    inside = ROIS + jnp.array([[0, 20, 20, 20, 20]], jnp.float32)
    positions = pool.sampling_positions(x, inside)
    assert positions.shape == (3, 3, 3, max(samples, 1), max(samples, 1), 2)
    expected = (positions[..., 0] + 100 * positions[..., 1]).mean((-1, -2))
    np.testing.assert_allclose(pool(x, inside)[..., 0], expected, rtol=1e-5)


def test_gradients_reach_every_branch():
    pool = trained(layer())
    gradients = nnx.grad(lambda pool: (pool(images(), ROIS) ** 2).sum())(pool)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.any(gradient[...]), path
