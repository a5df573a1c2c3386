# SPDX-License-Identifier: MIT
"""Compares detectors on composed images under one budget: `python -m examples.detection.results`."""

import collections
import dataclasses
import json
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro

import jax_dcn
from examples.detection.commands.evaluate import load, make_finder
from examples.detection.commands.train import train
from examples.detection.data.coco import CocoReader
from examples.detection.data.compose import compose
from examples.detection.data.measure import average_precision, measure
from examples.detection.training.recipes import COMPOSED, Settings
from examples.imagenet.command_line import in_words
from examples.imagenet.devices import place, processor
from examples.imagenet.errors import OptionError, UserError, check_option

DETECTORS = {
    "plain": dict(conv="ordinary"),
    "DCN": dict(conv="deformable"),
    "modulated DCN": dict(conv="modulated"),
    "modulated pooling": dict(conv="ordinary", pool="original"),
    "both": dict(conv="modulated", pool="original"),
}
"""What differs from the preset `composed`."""

ROTATIONS = ((0, 20), (20, 40), (40, 60))
"""Degrees to either side."""
SIDES = ((20, 30), (30, 43), (43, 64))
"""Pixels of the side of an upright scan."""


def results(
    *,
    output: pathlib.Path = pathlib.Path("build/detection-results"),
    file: pathlib.Path = pathlib.Path("benchmarks/results/detection.json"),
    seeds: int = 3,
    steps: int = 2000,
    train_images: int = 4000,
    val_images: int = 500,
    only: tuple[str, ...] = tuple(DETECTORS),
    pages: tuple[pathlib.Path, ...] = (),
) -> None:
    """Trains every detector with every seed, and keeps average precisions by rotation and by scale.

    Interrupted, the same command goes on where it stopped; runs that are in the file are left out.

    Args:
      output: Folder for the composed images and for the runs.
      file: The results, as JSON.
      seeds: Runs of each detector.
      steps: Steps of each run.
      train_images: Composed images to train on.
      val_images: Composed images to test on.
      only: Which detectors, among plain, DCN, modulated DCN, modulated pooling, both.
      pages: Markdown files with a table of detectors, their means and their processors, which the
        results replace.
    """
    for name, value in dict(seeds=seeds, train_images=train_images, val_images=val_images).items():
        check_option(name, value, 1)
    if unknown := set(only) - set(DETECTORS):
        raise OptionError(f"--only takes {', '.join(DETECTORS)}; got {', '.join(sorted(unknown))}.")
    budget = dict(steps=steps, train_images=train_images, val_images=val_images)
    content = _start(file, budget)
    data = output / "data"
    if not (data / "annotations" / "val.json").exists():
        compose(data, train=train_images, val=val_images)
    for seed in range(seeds):
        for name in only:
            if not any(run["detector"] == name and run["seed"] == seed for run in content["runs"]):
                content["runs"].append(_run(name, seed, steps, data, output))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content["runs"]))
    for page in pages:
        page.write_text(with_results(page.read_text(), content["runs"]))


def _start(file: pathlib.Path, budget: dict[str, int]) -> dict[str, Any]:
    content = json.loads(file.read_text()) if file.exists() else None
    if content is None:
        return {"data": "composed", "budget": budget, "runs": []}
    if content["budget"] != budget:
        raise UserError(
            f"{file} has results of another budget ({content['budget']}, not {budget}): choose "
            "another --file and --output."
        )
    return content


def _run(
    name: str, seed: int, steps: int, data: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
    settings = _settings(name, seed, steps, data, output)
    print(f"{name}, seed {seed}")
    start = time.perf_counter()
    train(settings)
    seconds = time.perf_counter() - start
    return {
        "detector": name,
        "seed": seed,
        **_precisions(settings),
        # Time since the last start, if the run was interrupted.
        "seconds": round(seconds),
        "processor": processor(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {jax.devices()[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jax_dcn": jax_dcn.__version__,
        },
    }


def _settings(
    name: str, seed: int, steps: int, data: pathlib.Path, output: pathlib.Path
) -> Settings:
    return dataclasses.replace(
        COMPOSED,
        data=data,
        output=output / f"{name.replace(' ', '-')}-{seed}",
        architecture=dataclasses.replace(COMPOSED.architecture, **DETECTORS[name]),
        steps=steps,
        seed=seed,
        evaluate_every=steps,
    )


def _precisions(settings: Settings) -> dict[str, Any]:
    placement = place(settings.batch_size)
    network = load(settings.output, settings.steps, placement)
    reader = CocoReader(settings.data, "val", settings.architecture.rule.extent)
    finder = make_finder(
        network.model, settings.architecture, placement, settings.batch_size, workers=0
    )
    found = finder.find_all(network.weights, reader)

    def within(name: str, bounds: tuple[int, int]) -> float:
        low, high = bounds
        return average_precision(
            reader.content, found, lambda entry: low <= abs(entry[name]) < high
        )

    summary = measure(reader.content, found).summary
    return {
        "AP": summary["AP"],
        "AP50": summary["AP50"],
        "rotation": {
            f"{low} to {high}": within("rotation", (low, high)) for low, high in ROTATIONS
        },
        "side": {f"{low} to {high}": within("side", (low, high)) for low, high in SIDES},
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds of average precisions, as a table in Markdown."""
    columns = ["AP", "AP50", *(f"{low} to {high}°" for low, high in ROTATIONS)]
    columns += [f"{low} to {high} px" for low, high in SIDES]
    lines = [f"| detector | runs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in DETECTORS:
        rows = [_row(run) for run in runs if run["detector"] == name]
        if rows:
            cells = [_cell(values) for values in zip(*rows, strict=True)]
            lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """The mean average precisions that the pages compare."""
    plain, moved, both = (
        f"{100 * np.mean([run['AP'] for run in runs if run['detector'] == name]):.1f}"
        for name in ("plain", "modulated pooling", "both")
    )
    return f"help most here: {moved} against {plain}, and {both} together with"


def machines(runs: Sequence[dict[str, Any]]) -> str:
    """How many runs were made on which processor, and by which version of jax_dcn."""
    processors = collections.Counter(run["processor"] for run in runs).most_common()
    versions = collections.Counter(run["versions"]["jax_dcn"] for run in runs).most_common()
    on = ", ".join(f"{count} on {processor}" for processor, count in processors)
    by = ", ".join(f"{count} of {version}" for version, count in versions)
    return f"Runs by processor: {on}; by version of jax_dcn: {by}."


def with_results(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """A page in Markdown with the table, the means and the processors of these runs."""
    contents = {
        "table of detectors": (r"^\| detector \|.*(\n\|.*)+", table(runs)),
        "sentence on their means": (r"help most here: .* together with", summary(runs)),
        "list of their processors": (r"^Runs by processor: .*", machines(runs)),
    }
    for name, (pattern, content) in contents.items():
        page, count = re.subn(pattern, lambda _, new=content: new, page, flags=re.MULTILINE)
        if count != 1:
            raise UserError(f"A page must have one {name}; this one has {count}.")
    return page


def _row(run: dict[str, Any]) -> list[float]:
    return [run["AP"], run["AP50"], *run["rotation"].values(), *run["side"].values()]


def _cell(values: Sequence[float]) -> str:
    percent = 100 * np.array(values)
    spread = f" ± {percent.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{percent.mean():.1f}{spread}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and returns the exit code."""
    return in_words(
        lambda: tyro.cli(results, prog="python -m examples.detection.results", args=arguments)
    )


if __name__ == "__main__":
    sys.exit(main())
