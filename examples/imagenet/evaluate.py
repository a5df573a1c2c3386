# SPDX-License-Identifier: MIT
"""How often a network is right, and the command that says so."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from tqdm import tqdm

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.data import NO_LABEL, Batch, evaluation_batches
from examples.imagenet.devices import Placement, connect, place, together
from examples.imagenet.errors import UserError
from examples.imagenet.readers import Reader, open_reader
from examples.imagenet.settings import Testing
from examples.imagenet.state import Weights, make_predictor, split


@dataclasses.dataclass(frozen=True)
class Network:
    """A network read from a checkpoint."""

    model: nnx.Module
    weights: Weights
    description: Description
    step: int


def load(run: pathlib.Path, step: int | None, placement: Placement, dtype: str | None) -> Network:
    """The network of a run's best checkpoint, or of checkpoint `step`; by default in its own dtype."""

    def build(description: Description) -> nnx.Module:
        classes = len(description.class_names)
        return description.model.build(classes, dtype=dtype or description.dtype)

    return load_network(Checkpoints(run), step, placement, build)


def load_network(
    checkpoints: Checkpoints,
    step: int | None,
    placement: Placement,
    build: Callable[[Description], nnx.Module],
) -> Network:
    """The network of the best checkpoint, or of checkpoint `step`.

    Args:
      checkpoints: The checkpoints of a run, to be closed.
      step: Which checkpoint; `None` for the best.
      placement: Where the weights go.
      build: Makes the network that a checkpoint describes.
    """
    with checkpoints:
        step = checkpoints.choose(step)
        description = checkpoints.description(step)
        # Shapes are enough: initial values would be thrown away.
        model = nnx.eval_shape(lambda: build(description))
        like = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placement.whole),
            split(model)[1],
        )
        weights = checkpoints.restore_weights(like, step)
    return Network(model, weights, description, step)


def make_counter(model: nnx.Module, placement: Placement) -> Callable[[Weights, dict], jax.Array]:
    """A function from weights and a batch to how many are right first, right in five, and all."""
    predict = make_predictor(model)

    def count(weights: Weights, batch: dict) -> jax.Array:
        logits, labels = predict(weights, batch["image"]), batch["label"]
        # How many classes come before the right one; a tie or a NaN is not in its favour.
        right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)
        before = jnp.sum(~(logits < right), axis=1) - 1
        real = labels != NO_LABEL
        hits = jnp.stack([real & (before < most) for most in (1, 5, logits.shape[1])])
        return jnp.sum(hits, axis=1, dtype=jnp.int32)

    return jax.jit(count, out_shardings=placement.whole)


def accuracy(
    count: Callable[[Weights, dict], jax.Array],
    weights: Weights,
    reader: Reader,
    placement: Placement,
    *,
    batch_size: int,
    image_size: int,
    workers: int,
) -> dict[str, float]:
    """The shares of images whose class is the first, and among the first five."""
    batches = evaluation_batches(
        reader,
        batch_size=batch_size,
        image_size=image_size,
        workers=workers,
        share=placement.share,
    )
    counts = jnp.zeros((3,), jnp.int32)
    for batch in shown(batches, -(-len(reader) // batch_size) * batch_size, placement):
        counts = counts + count(weights, batch)
    top1, top5, images = map(int, counts)
    return {"top1": top1 / images, "top5": top5 / images}


def evaluate(
    run: tyro.conf.Positional[pathlib.Path],
    data: str,
    *,
    split: Literal["train", "validation"] = "validation",
    dtype: Literal["float32", "bfloat16"] | None = None,
    testing: Testing = Testing(batch_size=256),
) -> None:
    """Tests a network: top-1 and top-5 accuracy.

    Args:
      run: Folder of a training run, or of imported weights.
      data: As for `train`.
      split: Which images.
      dtype: Of the computation; by default that of training, which gives the accuracy that training
        reported.
      testing: Which checkpoint, and how to go through the images.
    """
    connect(testing.processes)
    with together():
        placement = place(testing.batch_size)
        network = load(run, testing.step, placement, dtype)
        reader = open_reader(data, split)
        check_classes(reader.class_names, network.description)
        result = accuracy(
            make_counter(network.model, placement),
            network.weights,
            reader,
            placement,
            batch_size=testing.batch_size,
            image_size=network.description.model.image_size,
            workers=testing.workers,
        )
        if jax.process_index() == 0:
            print(f"step {network.step}, {len(reader)} images: {show(result)}")


def show(result: dict[str, float]) -> str:
    """The two shares in words."""
    return f"top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} %"


def shown(batches: Iterable[Batch], images: int, placement: Placement) -> Iterator[Batch]:
    """The batches of a test on their devices, with a bar of the progress over `images`."""
    quiet = None if jax.process_index() == 0 else True
    with tqdm(total=images, unit=" images", unit_scale=True, leave=False, disable=quiet) as bar:
        for batch in batches:
            yield (placed := placement.put_batch(batch))
            bar.update(len(next(iter(placed.values()))))


def check_classes(names: Sequence[str], description: Description) -> None:
    """Refuses data with another number of classes, or with others that have names."""
    known = description.class_names
    numbers = [str(index) for index in range(len(known))]  # Imported weights may know no names.
    if len(names) != len(known):
        difference = f"{len(known)} classes ({known[0]}, ...), and the data has {len(names)}"
    elif known not in (list(names), numbers):
        mine, other = next(pair for pair in zip(known, names, strict=True) if len(set(pair)) > 1)
        difference = f"the class {mine}, and the data has {other} in its place"
    else:
        return
    raise UserError(f"The network knows {difference}: choose the data that it was trained for.")
