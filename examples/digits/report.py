# SPDX-License-Identifier: MIT
"""What a comparison found: the table, `results.json` and the trained parameters."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform

import numpy as np
import orbax.checkpoint
from flax import nnx

import jax_dcn
from examples.digits.models import Classifier
from examples.imagenet.devices import processor

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Result:
    """One trained network."""

    network: str
    seed: int
    parameters: int
    accuracy: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """One kind of network over its seeds; `spread` is the standard deviation."""

    network: str
    parameters: int
    accuracy: float
    spread: float
    images_per_second: float


def summarise(results: list[Result]) -> list[Summary]:
    """A summary for each kind of network, in the order of the results."""
    return [
        _summary([result for result in results if result.network == network])
        for network in dict.fromkeys(result.network for result in results)
    ]


def _summary(results: list[Result]) -> Summary:
    mean, spread = _mean_and_spread([result.accuracy for result in results])
    # The median: another program that takes a core for a while does not count.
    speed = float(np.median([result.images_per_second for result in results]))
    return Summary(results[0].network, results[0].parameters, mean, spread, speed)


def _mean_and_spread(values: list[float]) -> tuple[float, float]:
    # One value has no spread: NaN says so, and NumPy would warn.
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(spread)


def paired_gains(results: list[Result], network: str, baseline: str) -> list[float]:
    """Accuracy of `network` less that of `baseline`, for every seed that has both."""
    accuracy = {(result.network, result.seed): result.accuracy for result in results}
    return [
        accuracy[network, seed] - accuracy[baseline, seed]
        for name, seed in accuracy
        if name == network and (baseline, seed) in accuracy
    ]


def table(results: list[Result]) -> str:
    """The summaries as text, and the gains of the last kind of network over the others."""
    summaries = summarise(results)
    lines = [f"{'network':18}{'accuracy':>18}{'images/s':>12}{'parameters':>13}"]
    for row in summaries:
        score = _points(row.accuracy, row.spread, "%")
        lines.append(
            f"{row.network:18}{score:>18}{row.images_per_second:12,.0f}{row.parameters:13,}"
        )
    for row in summaries[:-1]:
        gains = paired_gains(results, summaries[-1].network, row.network)
        each = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
        lines.append(f"{summaries[-1].network} less {row.network}, seed by seed: {each} points")
    return "\n".join(lines)


def _points(mean: float, spread: float, unit: str) -> str:
    return f"{100 * mean:.1f} {unit}" + ("" if np.isnan(spread) else f" ± {100 * spread:.1f}")


def write_results(path: pathlib.Path, results: list[Result], settings: dict) -> None:
    """Writes everything that is needed to read the numbers a year from now."""
    content = {
        "settings": settings,
        "results": [dataclasses.asdict(result) for result in results],
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "jax_dcn": {"version": jax_dcn.__version__, **jax_dcn.available_implementations()},
    }
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def save_parameters(path: pathlib.Path, model: Classifier) -> None:
    """Writes a checkpoint of orbax."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), nnx.state(model, nnx.Param), force=True)


def load_parameters(path: pathlib.Path, model: Classifier) -> None:
    """Reads what `save_parameters` wrote into a network of the same kind."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        parameters = checkpointer.restore(path.resolve(), nnx.state(model, nnx.Param))
    nnx.update(model, parameters)
