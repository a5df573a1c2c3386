# SPDX-License-Identifier: MIT
"""One training step of the ImageNet example, on a network small enough to compile in no time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.imagenet.settings import Settings
from examples.imagenet.state import (
    TrainState,
    initial_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    merge,
    normalise,
    split,
)
from jax_dcn.nnx import DeformConv

SETTINGS = Settings(data="none", weight_decay=0.0, average=0.9, batch_size=6, steps=10)
RATE = 0.5


class Network(nnx.Module):
    """A deformable convolution, normalised, with offsets that are not whole numbers."""

    def __init__(self):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))  # Compiles faster than the default.
        self.conv = DeformConv(3, 4, (3, 3), 2, padding=1, use_bias=False, rngs=rngs)
        self.conv.offset_conv.bias[...] = jnp.linspace(0.1, 0.9, 27, dtype=jnp.float32)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(jnp.mean(self.norm(self.conv(images)), axis=(1, 2)))


@pytest.fixture(scope="module", autouse=True)
def optax_promotion():
    """Schedules of optax compare whole numbers with floats, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def images_and_labels(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(count, 7, 9, 3)).astype(np.uint8)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % 5}


def step(batch: dict, **changes) -> tuple[TrainState, TrainState]:
    """The state before and after one step at the learning rate `RATE`."""
    settings = dataclasses.replace(SETTINGS, **changes)
    network = Network()
    optimizer = make_optimizer(settings, lambda _: RATE)
    before = initial_state(split(network)[1], optimizer, settings.average > 0)
    after, losses = jax.jit(make_train_step(network, optimizer, settings))(before, batch)
    assert np.isfinite(losses["loss"]) and after.step == 1
    return before, after


@pytest.fixture(scope="module")
def states() -> tuple[TrainState, TrainState]:
    return step(images_and_labels(6))


def updates_of(gradient: float, **changes) -> dict[str, jax.Array]:
    """What the optimiser adds to parameters of one, all with the same gradient."""
    optimizer = make_optimizer(dataclasses.replace(SETTINGS, **changes), lambda _: RATE)
    params = jax.tree.map(jnp.ones_like, split(Network())[1].params)
    gradients = jax.tree.map(lambda array: jnp.full_like(array, gradient), params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_split_and_merged_network_is_the_same():
    network = Network()
    network.eval()
    images = jnp.asarray(images_and_labels(2)["image"], jnp.float32)
    np.testing.assert_array_equal(merge(*split(network))(images), network(images))


def test_offset_branch_learns_at_a_tenth_of_the_rate():
    for name, update in updates_of(gradient=1.0, momentum=0.0).items():
        expected = -RATE * (0.1 if "offset_conv" in name else 1.0)
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)


def test_weight_decay_shrinks_kernels_alone():
    updates = updates_of(gradient=0.0, weight_decay=0.1)
    shrunk = {name for name, update in updates.items() if np.any(update)}
    assert shrunk == {"conv.kernel", "conv.offset_conv.kernel", "head.kernel"}
    assert np.all(updates["conv.kernel"] < 0)


def test_parts_of_a_batch_add_up_to_it(states):
    # Of each image's two copies one is in either part: both parts are the same, statistics included.
    doubled = {name: array.repeat(2, axis=0) for name, array in images_and_labels(6).items()}
    _, after = step(doubled, accumulate=2)
    assert any(
        np.any(new != states[0].weights.params[name]) for name, new in after.weights.params.items()
    )
    for name, expected in states[1].weights.params.items():
        actual = after.weights.params[name]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_batch_statistics_are_of_the_whole_batch(states):
    before, after = states
    network = merge(split(Network())[0], before.weights)
    features = network.conv(normalise(jnp.asarray(images_and_labels(6)["image"])))
    expected = 0.01 * jnp.mean(features, axis=(0, 1, 2))  # Flax's momentum is 0.99.
    np.testing.assert_allclose(after.weights.stats["norm.mean"], expected, rtol=1e-4, atol=1e-6)


def test_average_follows_the_weights_quickly_at_first(states):
    before, after = states
    for name, average in after.average.params.items():
        old, new = before.weights.params[name], after.weights.params[name]
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, rtol=1e-5, atol=1e-6)


def test_learning_rate_rises_linearly_then_falls_along_a_cosine_to_zero():
    settings = dataclasses.replace(SETTINGS, batch_size=512, steps=None, epochs=6, warmup_epochs=2)
    rate = learning_rate(settings, images=512 * 10)  # Ten steps to an epoch.
    values = [float(rate(step)) for step in (0, 10, 20, 40, 60)]
    np.testing.assert_allclose(values, [0.0, 0.1, 0.2, 0.1, 0.0], atol=1e-7)
