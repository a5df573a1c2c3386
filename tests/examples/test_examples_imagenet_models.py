# SPDX-License-Identifier: MIT
"""The residual networks of the classification example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.imagenet.models import ResNet, resnet
from jax_dcn.nnx import DeformConv


def shapes(depth: int, **options) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a network, by path, without drawing any."""
    model = nnx.eval_shape(lambda: resnet(depth, 1000, **options, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): value.get_value() for path, value in flat}


def small(**options) -> ResNet:
    return resnet(10, 7, width=8, rngs=nnx.Rngs(0), **options)


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 48, 64, 3)), jnp.float32)


# https://pytorch.org/vision/stable/models.html, as printed there.
@pytest.mark.parametrize(
    ("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
def test_ordinary_network_has_as_many_parameters_as_torchvisions(depth, count):
    assert sum(np.prod(value.shape) for value in shapes(depth).values()) == count


def test_deformable_networks_have_the_parameters_of_ordinary_ones_and_offset_branches():
    for depth, layers in {18: 12, 50: 13}.items():
        ordinary, deformable = shapes(depth), shapes(depth, conv=DeformConv)
        branches = {name for name in deformable if ".offset_conv." in name}
        assert set(deformable) - branches == set(ordinary)
        assert len(branches) == 2 * layers
        assert not any(name.startswith("layer1.") for name in branches)


def test_stages_choose_what_is_deformable():
    names = shapes(50, conv=functools.partial(DeformConv, modulated=False), stages=[5])
    branches = {name: value.shape for name, value in names.items() if "offset_conv.kernel" in name}
    assert branches == {
        f"layer4.{index}.conv2.offset_conv.kernel": (3, 3, 512, 18) for index in range(3)
    }


def test_fresh_deformable_network_equals_the_ordinary_one():
    deformable = functools.partial(DeformConv, mask_scale=2.0)

    @jax.jit
    def logits(x):
        return small()(x), small(conv=deformable)(x)

    expected, actual = logits(images())
    assert expected.shape == (2, 7) and jnp.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_bfloat16_network_keeps_float32_parameters_and_logits():
    # The statistics of flax's BatchNorm promote bfloat16 to float32 implicitly.
    with jax.numpy_dtype_promotion("standard"):
        model = nnx.eval_shape(lambda: small(conv=DeformConv, dtype=jnp.bfloat16))
        parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert {value.dtype for value in parameters} == {jnp.dtype("float32")}
        hidden, logits = nnx.eval_shape(lambda m, x: (m.conv1(x), m(x)), model, images())
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32


@pytest.mark.parametrize("depth", [10, 50])
def test_blocks_can_start_as_the_identity(depth):
    @jax.jit
    def scales():
        model = resnet(depth, 7, zero_init_residual=True, rngs=nnx.Rngs(0))
        flat = nnx.to_flat_state(nnx.state(model))
        return {".".join(map(str, path)): v[...] for path, v in flat if path[-1] == "scale"}

    last = "bn2" if depth == 10 else "bn3"
    for name, scale in scales().items():
        assert not scale.any() if last in name else scale.all(), name


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (20, {}, "depth must be one of .10, 18, 34, 50, 101., got 20"),
        (18, dict(stages=(1, 2)), "stages must be among 2, 3, 4, 5 .for c2 to c5., got .1, 2."),
    ],
)
def test_wrong_choice_is_named(depth, options, message):
    with pytest.raises(ValueError, match=message):
        resnet(depth, 5, **options, rngs=nnx.Rngs(0))
