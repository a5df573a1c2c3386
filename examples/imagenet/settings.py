# SPDX-License-Identifier: MIT
"""What a training run can be told, and the presets: recipes that differ in a few values."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from examples.imagenet.errors import OptionError, check_option
from examples.imagenet.models import ResNet, resnet
from jax_dcn.nnx import DeformConv

CONVS = {
    "ordinary": nnx.Conv,
    "v1": functools.partial(DeformConv, modulated=False),
    "v2": DeformConv,
    # The mask starts at one: a deformable network starts as the ordinary one that it replaces.
    "v2-exact": functools.partial(DeformConv, mask_scale=2.0),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Which network; kept in every checkpoint, so that other commands build the same."""

    depth: int = 50
    """18, 34, 50 or 101; or 10, for trials."""
    conv: Literal["ordinary", "v1", "v2", "v2-exact"] = "v2"
    """Kind of the 3x3 convolutions in `stages`: ordinary, or deformable as in the paper of that version.
    v2-exact has masks from 0 to 2, so that a fresh or imported network computes what the ordinary
    one does."""
    stages: tuple[int, ...] = (3, 4, 5)
    """Stages c2 to c5 that have convolutions of this kind."""
    width: int = 64
    """Features of the first stage."""
    image_size: int = 224
    """Height and width of the images."""

    def __post_init__(self) -> None:
        check_option("width", self.width, 1)
        check_option("image_size", self.image_size, 1)

    def build(self, classes: int, seed: int = 0, dtype: str = "float32") -> ResNet:
        """A fresh network."""
        check_dtype(dtype)
        try:
            return resnet(
                self.depth,
                classes,
                conv=CONVS[self.conv],
                stages=self.stages,
                width=self.width,
                dtype=jnp.dtype(dtype),
                param_dtype=jnp.promote_types(dtype, jnp.float32),
                rngs=nnx.Rngs(seed),
            )
        except ValueError as error:
            raise OptionError(str(error)) from error


LARGEST_SEED = 2**32 - 1
MOST_STEPS = 2**31 - 1  # The counter of steps has 32 bits.


def check_dtype(dtype: str) -> None:
    """Refuses to compute in float64 where JAX would compute in float32."""
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise OptionError("--dtype float64 needs the environment variable JAX_ENABLE_X64=1.")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Several processes train as one: every one gets the same command but for its number."""

    coordinator: str | None = None
    """Address of process 0, as host:port; "auto" asks the cluster (SLURM, Open MPI, Kubernetes)."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    timeout: int = 100
    """Seconds without a sign of life after which a process is taken for dead, and the rest end."""

    def __post_init__(self) -> None:
        check_option("num_processes", self.num_processes, 1)
        check_option("process_id", self.process_id, 0, (self.num_processes or math.inf) - 1)
        check_option("timeout", self.timeout, 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """What every training run can be told, whatever is trained."""

    output: pathlib.Path = pathlib.Path("build/run")
    """Folder for checkpoints and logs. A run that finds its checkpoints there goes on with them."""
    initial: pathlib.Path | None = None
    """Folder of a run, or of imported weights, whose weights to start with."""
    epochs: float = 1.0
    """How often to see every image, for at least one step."""
    steps: int | None = None
    """How many steps to train, instead of epochs."""
    batch_size: int = 16
    """Images in a step, over all devices and processes."""
    offset_rate: float = 0.1
    """Learning rate of the offset branches, relative to the others: the paper's."""
    flip: bool = True
    """Mirror half of the images."""
    seed: int = 0
    """Seed of all that is random: initial weights, order, and what a step draws of images and boxes."""
    workers: int = 8
    """Processes that decode images; 0 decodes in threads."""
    checkpoint_every: int = 1000
    """Steps between checkpoints: what a crash may lose."""
    evaluate_every: int = 5000
    """Steps between tests on the validation images; the last step tests, too."""
    log_every: int = 50
    """Steps between lines of the log."""
    processes: Processes = Processes()

    def __post_init__(self) -> None:
        check_option("steps", self.steps, 1, MOST_STEPS)
        for name in ("batch_size", "checkpoint_every", "evaluate_every", "log_every"):
            check_option(name, getattr(self, name), 1)
        for name in ("offset_rate", "workers"):
            check_option(name, getattr(self, name), 0)
        if not 0 < self.epochs < math.inf:
            raise OptionError(f"--epochs must be above 0 and finite, got {self.epochs}.")
        check_option("seed", self.seed, 0, LARGEST_SEED)

    def total_steps(self, steps_of_epoch: float) -> int:
        """How many steps the run takes."""
        steps = self.steps or self.epochs * steps_of_epoch
        if steps > MOST_STEPS:
            raise OptionError(
                f"--epochs {self.epochs} would take {steps:.3g} steps, and a run has at most "
                f"{MOST_STEPS}: lower it."
            )
        return max(1, round(steps))

    def decisive(self) -> dict[str, Any]:
        """The options that decide what is trained, besides the network, as JSON keeps them."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _NOT_DECISIVE
        }
        return json.loads(json.dumps(options, default=str))


_NOT_DECISIVE = {"model", "architecture", "output", "processes", "workers"} | {
    "checkpoint_every",
    "evaluate_every",
    "log_every",
}


@dataclasses.dataclass(frozen=True)
class Testing:
    """How a test goes through its images."""

    step: int | None = None
    """Which checkpoint; by default the best."""
    batch_size: int = 16
    """Images at a time, over all devices."""
    workers: int = 8
    """Processes that decode images; 0 decodes in threads."""
    processes: Processes = Processes()

    def __post_init__(self) -> None:
        check_option("step", self.step, 0)
        check_option("batch_size", self.batch_size, 1)
        check_option("workers", self.workers, 0)


@dataclasses.dataclass(frozen=True)
class Settings(Run):
    """A training run of a classifier."""

    data: str = tyro.MISSING
    """Folder with train/ and val/, each with a folder of images for every class; or
    arrayrecord:FOLDER, tfds:NAME, digits, generated."""
    output: pathlib.Path = pathlib.Path("build/imagenet")
    model: Model = Model()
    epochs: float = 90.0
    batch_size: int = 256
    accumulate: int = 1
    """Parts of a step's batch, computed one after the other, to save memory."""
    learning_rate: float = 0.1
    """Learning rate after the warm-up, for 256 images in a step; scaled in proportion to batch-size."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from zero, before it falls along a cosine."""
    momentum: float = 0.9
    """Momentum of Nesterov's method."""
    weight_decay: float = 1e-4
    """Weight decay of kernels; biases and batch normalisations have none."""
    label_smoothing: float = 0.1
    """Share of the label that goes to all classes alike."""
    average: float = 0.9999
    """Decay of the moving average of the weights, which is what is tested; 0 tests the weights."""
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """Dtype of the computation; parameters and batch statistics have at least float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("accumulate", self.accumulate, 1)
        for name in ("learning_rate", "warmup_epochs", "weight_decay"):
            check_option(name, getattr(self, name), 0)
        for name in ("momentum", "label_smoothing", "average"):
            check_option(name, getattr(self, name), 0, 1)


_TRIAL = dataclasses.replace(
    Settings(data="digits"),
    model=Model(depth=10, width=8, image_size=32),
    epochs=10.0,
    warmup_epochs=1.0,
    batch_size=64,
    dtype="float32",
    workers=0,
    flip=False,
    average=0.99,
    checkpoint_every=100,
    evaluate_every=100,
    log_every=10,
)

PRESETS = {
    "imagenet": Settings(),
    "digits": _TRIAL,
    # Twenty steps.
    "generated": dataclasses.replace(_TRIAL, data="generated", epochs=1.28),
}
DESCRIPTIONS = {
    "imagenet": "ResNet-50 with deformable convolutions of version 2 in c3 to c5, 90 epochs.",
    "digits": "A small network on scikit-learn's handwritten digits: minutes on a CPU.",
    "generated": "A few steps on generated images, to see that everything runs.",
}
Preset = tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False)
