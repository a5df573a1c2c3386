# SPDX-License-Identifier: MIT
"""The state of training, its optimiser, and the step from one state to the next."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict

from examples.imagenet.settings import Settings

_MEAN = (0.485, 0.456, 0.406)  # Of ImageNet's training images, as everybody's since ResNet.
_DEVIATION = (0.229, 0.224, 0.225)


Arrays = dict[str, jax.Array]
"""Arrays by the names of torch's checkpoints, such as `layer1.0.conv1.kernel`."""


class Weights(NamedTuple):
    """All that a network computes with."""

    params: Arrays
    stats: Arrays
    """Mean and variance of the batch normalisations."""


class TrainState(NamedTuple):
    """All that the next step depends on, besides its batch."""

    step: jax.Array
    weights: Weights
    average: Weights | None
    """Moving average of `weights`: what is tested, and used later."""
    optimizer: optax.OptState

    @property
    def tested(self) -> Weights:
        """The weights to test and to keep."""
        return self.weights if self.average is None else self.average


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Weights]:
    """Its structure and its weights."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, Weights(_by_name(params), _by_name(stats))


def merge(graph: nnx.GraphDef, weights: Weights) -> nnx.Module:
    """The network that was split."""
    return nnx.merge(graph, *(nnx.from_flat_state(_by_path(arrays)) for arrays in weights))


def _by_name(state: nnx.State) -> Arrays:
    by_path = flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): array for path, array in by_path.items()}


def _by_path(arrays: Arrays) -> dict[tuple[str | int, ...], jax.Array]:
    return {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): array
        for name, array in arrays.items()
    }


def initial_state(weights: Weights, optimizer: optax.GradientTransformation, average: bool):
    """The state before the first step."""
    copy = jax.tree.map(jnp.copy, weights) if average else None
    return TrainState(jnp.zeros((), jnp.int32), weights, copy, optimizer.init(weights.params))


def learning_rate(settings: Settings, images: int) -> optax.Schedule:
    """Linear warm-up to the batch's share of the learning rate, then a cosine to zero."""
    epoch = images / settings.batch_size
    steps = settings.total_steps(epoch)
    warmup = round(settings.warmup_epochs * epoch)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate * settings.batch_size / 256,
        warmup_steps=min(warmup, steps // 2),
        decay_steps=steps,
    )


def make_optimizer(settings: Settings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent as ResNets are trained, the offset branch at a slower rate."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=_is_kernel),
        optax.trace(settings.momentum, nesterov=True),
        optax.masked(optax.scale(settings.offset_rate), is_offset_branch),
        optax.scale_by_learning_rate(schedule),
    )


def _is_kernel(params: Arrays) -> dict[str, bool]:
    return {name: value.ndim > 1 for name, value in params.items()}


def is_offset_branch(params: Arrays) -> dict[str, bool]:
    """Which parameters predict where convolutions sample."""
    return {name: "offset_conv" in name for name in params}


def make_train_step(
    model: nnx.Module, optimizer: optax.GradientTransformation, settings: Settings
) -> Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """A function from a state and a batch to the next state and the loss, by its name."""
    model.train()
    graph, _ = split(model)

    def loss_of(params: Arrays, stats: Arrays, images: jax.Array, labels: jax.Array):
        trained = merge(graph, Weights(params, stats))
        loss = _cross_entropy(trained(normalise(images)), labels, settings.label_smoothing)
        return loss, split(trained)[1].stats

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradient, stats = _accumulated_gradient(
            loss_of, state.weights, batch, settings.accumulate
        )
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.weights.params)
        weights = Weights(optax.apply_updates(state.weights.params, updates), stats)
        average = _moved_average(state, weights, settings.average)
        return TrainState(state.step + 1, weights, average, opt_state), {"loss": loss}

    return train_step


def _accumulated_gradient(loss_of: Callable, weights: Weights, batch: dict, parts: int):
    """Loss and gradient, means over the `parts` of a batch, and the statistics after the last."""
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def one_part(carry, part: dict):
        gradient_sum, stats = carry
        (loss, stats), gradient = gradient_of(weights.params, stats, part["image"], part["label"])
        return (jax.tree.map(jnp.add, gradient_sum, gradient), stats), loss

    # Every device's images are next to each other: each part takes some from every device.
    batch = jax.tree.map(
        lambda array: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0), batch
    )
    zeros = jax.tree.map(jnp.zeros_like, weights.params)
    (gradient, stats), losses = jax.lax.scan(one_part, (zeros, weights.stats), batch)
    return jnp.mean(losses), jax.tree.map(lambda total: total / parts, gradient), stats


def _moved_average(state: TrainState, weights: Weights, decay: float) -> Weights | None:
    if state.average is None:
        return None
    # At the start a short memory, which forgets the initial weights.
    step = state.step.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + rate * (new - old), state.average, weights)


def normalise(images: jax.Array) -> jax.Array:
    """Images of uint8 as the networks expect them."""
    return (images.astype(jnp.float32) / 255 - _channels(_MEAN)) / _channels(_DEVIATION)


def _channels(values: tuple[float, ...]) -> jax.Array:
    return jnp.array(values, jnp.float32).reshape(1, 1, 1, 3)


def _cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.mean(optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing)))


def make_predictor(model: nnx.Module) -> Callable[[Weights, jax.Array], jax.Array]:
    """A function from weights and images of uint8 to logits."""
    model.eval()
    graph, _ = split(model)

    def predict(weights: Weights, images: jax.Array) -> jax.Array:
        return merge(graph, weights)(normalise(images))

    return predict
