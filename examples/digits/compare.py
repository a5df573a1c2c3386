# SPDX-License-Identifier: MIT
"""Trains every kind of network with every seed under one budget, and keeps what comes out."""

import dataclasses
import pathlib

import jax
from flax import nnx
from tqdm import tqdm

from examples.digits.data import Scans, load_scans
from examples.digits.draw import draw_samples, first_of_each_digit
from examples.digits.models import NETWORKS, Classifier, parameter_count
from examples.digits.report import Result, save_parameters, table, write_results
from examples.digits.train import Budget, accuracy, train, warped_test_set
from jax_dcn import available_implementations

_STEPS_PER_REPORT = 10  # Reading the loss waits for the step: not too often.


@dataclasses.dataclass(frozen=True)
class Settings:
    """One comparison."""

    output: pathlib.Path
    budget: Budget
    seeds: int
    warps_per_scan: int
    part: str


class Comparison:
    """A comparison and what it has found so far."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.results: list[Result] = []
        self.saved: list[pathlib.Path] = []

    def run(self) -> None:
        """Trains, tests and saves one network after the other, then draws the last."""
        self.settings.output.mkdir(parents=True, exist_ok=True)
        parts = load_scans()
        test_set = warped_test_set(
            parts[self.settings.part], self.settings.budget.warp, self.settings.warps_per_scan
        )
        print(f"Native kernels: {available_implementations()['native']}.")
        runs = [(seed, name) for seed in range(self.settings.seeds) for name in NETWORKS]
        images = len(runs) * self.settings.budget.steps * self.settings.budget.batch_size
        # Without a terminal there is no bar, only a line for every network.
        with tqdm(total=images, unit=" images", unit_scale=True, disable=None) as bar:
            for seed, name in runs:
                bar.set_description(f"seed {seed}, {name}")
                bar.set_postfix_str("compiling" if seed == 0 else "")
                model = NETWORKS[name](nnx.Rngs(seed))
                self._run_one(name, model, seed, parts["train"], test_set, bar)
        self._draw(model, test_set)

    def _run_one(
        self, name: str, model: Classifier, seed: int, scans: Scans, test_set: Scans, bar: tqdm
    ) -> None:
        budget = self.settings.budget
        seconds = train(model, scans, budget, seed, _progress(bar, budget.batch_size))
        result = Result(
            network=name,
            seed=seed,
            parameters=parameter_count(model),
            accuracy=accuracy(model, test_set),
            images_per_second=budget.batch_size / seconds,
        )
        self._save(result, model)
        tqdm.write(
            f"seed {seed}, {name}: {100 * result.accuracy:.1f} % right, "
            f"{result.images_per_second:,.0f} images/s"
        )

    def _save(self, result: Result, model: Classifier) -> None:
        name = f"{result.network.replace(', ', '-')}-seed{result.seed}"
        path = self.settings.output / "parameters" / name
        save_parameters(path, model)
        self.results.append(result)
        write_results(self._results_path, self.results, dataclasses.asdict(self.settings))
        self.saved = [self._results_path, *self.saved[1:], path]

    @property
    def _results_path(self) -> pathlib.Path:
        return self.settings.output / "results.json"

    def _draw(self, model: Classifier, test_set: Scans) -> None:
        path = self.settings.output / "samples.png"
        draw_samples(model, first_of_each_digit(test_set), path)
        self.saved.append(path)

    def report(self) -> str:
        """The table so far and where everything is, or that there is nothing."""
        if not self.results:
            return "Nothing was saved yet."
        files = "\n".join(f"  {path}" for path in self.saved)
        return f"\n{table(self.results)}\n\nSaved:\n{files}"


def _progress(bar: tqdm, batch_size: int):
    losses: list[jax.Array] = []

    def on_step(loss: jax.Array) -> None:
        losses.append(loss)
        if len(losses) % _STEPS_PER_REPORT == 0:
            bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
        bar.update(batch_size)

    return on_step
