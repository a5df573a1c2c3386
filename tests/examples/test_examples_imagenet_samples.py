# SPDX-License-Identifier: MIT
"""What the pictures of the ImageNet example show is what the layers sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.imagenet.samples import Samples, samples_of, trace
from examples.imagenet.state import normalise, split
from jax_dcn.nnx import DeformConv

TAPS = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(9, 2)


def ordinary(size: tuple[int, int], scale: int, strides: int = 1) -> Samples:
    """A 3x3 convolution whose output positions are `scale` pixels of the image apart."""
    centres = scale * np.stack(np.indices(size), -1)[:, :, None]
    regular = (centres + TAPS * scale / strides).astype(float)
    return Samples("conv", regular, regular, np.ones((*size, 9)), np.full(2, float(scale)))


def moved(layer: Samples, offset: tuple[float, float], mask: float) -> Samples:
    return Samples(
        layer.name, layer.position + offset, layer.regular, layer.mask * mask, layer.scale
    )


def test_ordinary_layers_are_traced_to_their_receptive_field():
    layers = [ordinary((8, 10), 2, strides=2), ordinary((4, 5), 4, strides=2)]
    position, weight = trace(layers, np.array([8, 4]))
    # The steps between taps of a layer are the pixels between the positions of its input.
    expected = np.array([8, 4]) + (2 * TAPS[:, None] + TAPS[None]).reshape(-1, 2)
    np.testing.assert_array_equal(np.sort(position, axis=0), np.sort(expected, axis=0))
    np.testing.assert_array_equal(weight, np.ones(81))


def test_offsets_of_all_layers_add_up_and_masks_multiply():
    layers = [ordinary((8, 10), 2), ordinary((8, 10), 2)]
    start = np.array([8, 6])
    position, _ = trace(layers, start)
    shifted, weight = trace(
        [moved(layers[0], (0.25, -1.5), 0.5), moved(layers[1], (0.5, 0.25), 1.5)], start
    )
    np.testing.assert_allclose(shifted - position, np.tile([0.75, -1.25], (81, 1)))
    np.testing.assert_allclose(weight, 0.75)


class Network(nnx.Module):
    """Two deformable convolutions, the first with a stride, with offsets that vary."""

    def __init__(self):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.layer1 = DeformConv(3, 4, (3, 3), 2, padding=1, rngs=rngs)
        self.layer2 = DeformConv(4, 5, (3, 3), padding=1, modulated=False, rngs=rngs)
        for layer in (self.layer1, self.layer2):
            kernel = layer.offset_conv.kernel
            kernel[...] = 0.1 * jax.random.normal(rngs.params(), kernel.shape, jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.layer2(self.layer1(images))


def test_samples_of_every_layer_are_those_of_the_layers_in_pixels_of_the_image():
    network = Network()
    view = np.random.default_rng(0).integers(256, size=(12, 16, 3)).astype(np.uint8)
    first, second = samples_of(network, split(network)[1], normalise(jnp.asarray(view[None])))
    assert (first.name, second.name) == ("layer1", "layer2")
    images = normalise(jnp.asarray(view[None]))
    expected, mask = network.layer1.sampling_positions(images)
    np.testing.assert_allclose(first.position, expected[0, :, :, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first.mask, mask[0, :, :, 0], rtol=1e-5)
    expected, _ = network.layer2.sampling_positions(network.layer1(images))
    np.testing.assert_allclose(second.position, 2 * expected[0, :, :, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(second.mask, np.ones((6, 8, 9)))
    np.testing.assert_allclose(first.regular[2, 3], 2 * np.array([2, 3]) + TAPS, atol=1e-5)
    np.testing.assert_allclose(second.regular[2, 3], 2 * (np.array([2, 3]) + TAPS), atol=1e-5)
    assert second.offset_size.shape == (6, 8) and second.offset_size.min() > 0


class Deep(nnx.Module):
    """A deformable convolution at stride 32: halved sizes are rounded up, as in a ResNet."""

    def __init__(self):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.layer = DeformConv(3, 1, (3, 3), 2, padding=1, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        for _ in range(4):
            images = images[:, ::2, ::2]
        return self.layer(images)


@pytest.mark.parametrize("size", [32, 40, 44, 66])
def test_scale_is_the_stride_at_sizes_that_it_does_not_divide(size):
    network = Deep()
    (samples,) = samples_of(network, split(network)[1], jnp.zeros((1, size, size, 3), jnp.float32))
    np.testing.assert_array_equal(samples.scale, [32, 32])
