# SPDX-License-Identifier: MIT
"""The optimiser of a detector, and the step from one state of training to the next."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.detection.data.images import normalise
from examples.detection.model.networks import Detector
from examples.detection.training.losses import Losses, Sampling, Truth, losses
from examples.detection.training.recipes import Settings
from examples.imagenet.state import (
    Arrays,
    TrainState,
    Weights,
    is_offset_branch,
    merge,
    split,
)

_REFERENCE_BATCH = 16  # Images of a published step: two on each of eight GPUs.


def learning_rate(settings: Settings, steps: int) -> optax.Schedule:
    """Linear warm-up to the batch's share of the learning rate, then a tenth at each of two steps."""
    peak = settings.learning_rate * settings.batch_size / _REFERENCE_BATCH
    drops = jnp.array([round(share * steps) for share in settings.drop_at])
    start = settings.warmup_from

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rise = jnp.minimum(step / max(1, settings.warmup_steps), 1)
        return peak * (start + (1 - start) * rise) * 0.1 ** jnp.sum(step >= drops)

    return rate


def make_optimizer(settings: Settings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent as published; frozen stages stay, offset branches are slower."""
    trained = optax.chain(
        optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum),
        optax.masked(optax.scale(settings.offset_rate), is_offset_branch),
        optax.scale_by_learning_rate(schedule),
    )
    kinds = {"trained": trained, "frozen": optax.set_to_zero()}
    return optax.partition(kinds, lambda params: _kinds(params, settings.frozen_stages))


def _kinds(params: Arrays, frozen_stages: int) -> dict[str, str]:
    frozen = _frozen(frozen_stages)
    return {name: "frozen" if frozen.match(name) else "trained" for name in params}


def _frozen(stages: int) -> re.Pattern:
    """The names of frozen parameters: none for -1, the first layer for 0, then stage by stage."""
    if stages < 0:
        return re.compile("(?!)")
    layers = "|".join(["conv1", "bn1", *(f"layer{stage}" for stage in range(1, stages + 1))])
    return re.compile(rf"backbone\.({layers})\.")


def set_mode(detector: Detector, settings: Settings) -> None:
    """Sets which batch normalisations learn their statistics."""
    frozen = _frozen(settings.frozen_stages)
    for path, layer in nnx.iter_modules(detector):
        if isinstance(layer, nnx.BatchNorm):
            name = ".".join(map(str, path)) + "."
            layer.use_running_average = settings.norm == "kept" or bool(frozen.match(name))


def make_train_step(
    detector: Detector, optimizer: optax.GradientTransformation, settings: Settings
) -> Callable[[TrainState, dict], tuple[TrainState, Losses]]:
    """A function from a state and a batch to the next state and the losses."""
    set_mode(detector, settings)
    graph, _ = split(detector)
    sampling = Sampling(settings.anchors_per_image, settings.regions_per_image)

    def narrow(array: jax.Array) -> jax.Array:
        return array.astype(settings.dtype)

    def loss_of(params: Arrays, stats: Arrays, batch: dict, key: jax.Array):
        trained = merge(graph, Weights(jax.tree.map(narrow, params), stats))
        images = normalise(batch["image"], batch["size"], jnp.ones_like(batch["size"]))
        images = images._replace(pixels=narrow(images.pixels))
        truth = Truth(batch["boxes"], batch["labels"], batch.get("masks"))
        found = losses(trained, images, truth, sampling, key)
        return found["loss"], (found, split(trained)[1].stats)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, Losses]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        gradient_of = jax.grad(loss_of, has_aux=True)
        gradient, (found, stats) = gradient_of(*state.weights, batch, key)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.weights.params)
        weights = Weights(optax.apply_updates(state.weights.params, updates), stats)
        return TrainState(state.step + 1, weights, None, optimizer_state), found

    return train_step
