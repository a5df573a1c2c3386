# SPDX-License-Identifier: MIT
"""Checkpoints of a run: the latest ones, to resume from, and the best one, to use."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from examples.imagenet.errors import UserError
from examples.imagenet.settings import Model
from examples.imagenet.state import TrainState, Weights

_NOT_TRAINED = 0  # The step of weights from elsewhere.
_LATEST = 2  # One may be damaged by the crash that makes it needed.


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint says about its network."""

    model: Any
    """The dataclass that builds it."""
    class_names: list[str]
    dtype: str = "float32"
    """Of the computation in training and in its tests."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The other options that decide what is trained."""

    def check_equal(self, other: "Description", folder: pathlib.Path) -> None:
        """Refuses to go on with the checkpoints of another network."""
        mine, theirs = (_flat(description) for description in (self, other))
        differences = [
            f"{name} {mine[name]}, not {theirs[name]}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        if differences:
            raise UserError(
                f"{folder.resolve()} holds checkpoints of another network ({'; '.join(differences)}"
                "): choose another --output, or the same network."
            )

    def check_average(self, other: "Description") -> None:
        """Refuses to go on with a moving average that is not there, or without the one that is."""
        mine, theirs = (options.get("average") for options in (self.options, other.options))
        if None not in (mine, theirs) and (mine > 0) != (theirs > 0):
            has = "a" if mine > 0 else "no"
            raise UserError(
                f"The run has {has} moving average of the weights, and --average {theirs} does not "
                f"go on with it: choose --average {mine}, or another --output."
            )

    def changes(self, other: "Description") -> list[str]:
        """What a run with the options of `other` changes, an option each."""
        return [
            f"--{name.replace('_', '-')} is {value}, and was {self.options[name]}."
            for name, value in other.options.items()
            if self.options.get(name, value) != value
        ]


def _flat(description: Description) -> dict[str, Any]:
    return dataclasses.asdict(description.model) | {"classes": description.class_names}


class Checkpoints:
    """The checkpoints in a folder.

    A checkpoint is written beside the others and renamed when it is whole: one that was being
    written when its program was killed is not there.
    """

    model: type = Model
    """The dataclass that says which network a checkpoint holds."""
    metric: str = "top1"
    """What makes a checkpoint the best."""
    other: str = (
        "a detector: commands of `python -m examples.detection` use it, and `train --initial` there "
        "starts with it"
    )
    """What a checkpoint holds that has another dataclass."""

    def __init__(self, folder: pathlib.Path, *, write: bool = False):
        self.folder, self._write = folder, write
        if not write and not folder.is_dir():
            raise UserError(f"There is no run in {folder.resolve()}: check the path.")
        keep = [
            policies.LatestN(_LATEST),
            policies.BestN(
                get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=self._quality,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            create=write,
            read_only=not write,
            cleanup_tmp_directories=write,
        )
        self._manager = ocp.CheckpointManager(folder.resolve() / "checkpoints", options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self._manager.close()  # Waits for what is being written.
        goes_on = self._write and self.latest not in (None, _NOT_TRAINED)
        if isinstance(error, KeyboardInterrupt) and goes_on:
            error.add_note(f"The same command goes on after step {self.latest}.")

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, description: Description, metrics: dict[str, float] | None = None
    ) -> None:
        """Starts to write a checkpoint; `metrics` has its `metric` if it was tested."""
        weights, training = _items(state)
        self._save(int(state.step), description, metrics, weights=weights, training=training)

    def save_weights(self, weights: Weights, description: Description) -> None:
        """Starts to write a network that was not trained here."""
        if self.latest is not None:
            raise UserError(f"{self.folder} has checkpoints already: choose another folder.")
        self._save(_NOT_TRAINED, description, None, weights=weights)

    def _save(self, step: int, description: Description, metrics, **items: Any) -> None:
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        content = ocp.args.JsonSave(dataclasses.asdict(description))
        self._manager.save(
            step, args=ocp.args.Composite(**arrays, description=content), metrics=metrics
        )

    def restore(self, like: TrainState, description: Description) -> TrainState:
        """The state of the latest checkpoint, placed as `like` is."""
        if self.latest == _NOT_TRAINED:
            raise UserError(
                f"{self.folder} holds weights that were not trained here: name it with --initial, "
                "and choose another --output."
            )
        before = self.description(self.latest)
        before.check_equal(description, self.folder)
        before.check_average(description)
        if jax.process_index() == 0:
            for change in before.changes(description):
                print(f"Note: {change}", file=sys.stderr)
        weights, training = _items(like)
        restored = self._restore(self.latest, weights=weights, training=training)
        if like.average is None:
            return restored.training._replace(weights=restored.weights)
        return restored.training._replace(average=restored.weights)

    def restore_weights(self, like: Weights, step: int | None = None) -> Weights:
        """The weights of the best checkpoint, or that of `step`."""
        return self._restore(self.choose(step), weights=like).weights

    def choose(self, step: int | None) -> int:
        """`step`, or by default that of the best checkpoint: the latest, if none was tested."""
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"There is no checkpoint in {self.folder.resolve()}: train first.")
        if step is not None and step not in steps:
            raise UserError(f"There is no checkpoint of step {step}, but of {_listed(steps)}.")
        best = self._manager.best_step()
        return step if step is not None else max(steps) if best is None else best

    def description(self, step: int) -> Description:
        """Which network the checkpoint of a step holds."""
        item = ocp.args.Composite(description=ocp.args.JsonRestore())
        content = self._manager.restore(step, args=item).description
        # JSON has lists where a dataclass has tuples.
        lists = {name: value for name, value in content["model"].items() if isinstance(value, list)}
        tuples = {name: tuple(value) for name, value in lists.items()}
        try:
            model = self.model(**content["model"] | tuples)
        except TypeError as error:
            raise UserError(f"{self.folder} holds {self.other}.") from error
        # Checkpoints of earlier versions have neither.
        dtype, options = content.get("dtype", "float32"), content.get("options", {})
        return Description(model, content["class_names"], dtype, options)

    def _quality(self, metrics: dict[str, float]) -> float:
        # A run of another program has other measures, until its description is read.
        return metrics.get(self.metric, -math.inf)

    def _restore(self, step: int, **like: Any) -> Any:
        items = {name: ocp.args.StandardRestore(_abstract(item)) for name, item in like.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"The checkpoint of step {step} in {self.folder.resolve()} does not fit these "
                f"options ({str(error).splitlines()[0]}): choose those that it was made with, or "
                "another folder."
            ) from error


def _items(state: TrainState) -> tuple[Weights, TrainState]:
    """What to use later, and what training needs besides; no array twice."""
    if state.average is None:
        return state.weights, state._replace(weights=None)
    return state.average, state._replace(average=None)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree
    )


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(steps)))
