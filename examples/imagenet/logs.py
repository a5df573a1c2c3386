# SPDX-License-Identifier: MIT
"""What a run tells: a progress bar, lines of JSON in `log.jsonl`, and TensorBoard."""

import json
import pathlib
import sys
import time

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

_SECONDS = 10  # Between two lines, where there is no progress bar.


class Log:
    """Tells about a run, from process 0 alone."""

    def __init__(self, folder: pathlib.Path, first_step: int, steps: int, batch_size: int):
        self._batch_size = batch_size
        self._writes = jax.process_index() == 0
        # Without a terminal there is no bar, only lines.
        self._bar = tqdm(
            total=steps * batch_size,
            initial=first_step * batch_size,
            unit=" images",
            unit_scale=True,
            disable=None if self._writes else True,
        )
        self._steps, self._shown = steps, 0.0
        self.start_clock(first_step)
        if self._writes:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = _reopen(folder / "log.jsonl", first_step)
            self._summary = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        if self._writes:
            self._lines.close()
            self._summary.close()

    def advance(self) -> None:
        """Counts a step."""
        self._bar.update(self._batch_size)

    def write(self, step: int, **values: float) -> None:
        """Keeps the values of a step."""
        if not self._writes:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._summary.add_scalar(name, value, step)

    def images_per_second(self, step: int) -> float:
        """The speed since the clock was started."""
        then, last = self._since
        return (step - last) * self._batch_size / (time.perf_counter() - then)

    def start_clock(self, step: int) -> None:
        """Measures speed from now, after `step`."""
        self._since = (time.perf_counter(), step)

    def show(self, step: int, **values: float) -> None:
        """Shows values beside the progress bar; without a terminal, as a line now and then."""
        words = {name: f"{value:.3g}" for name, value in values.items()}
        self._bar.set_postfix(words)
        if self._bar.disable and time.perf_counter() - self._shown > _SECONDS:
            self._shown = time.perf_counter()
            listed = ", ".join(f"{name} {word}" for name, word in words.items())
            self.say(f"step {step} of {self._steps}: {listed}")

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._writes:
            tqdm.write(text)
            sys.stdout.flush()


def _reopen(path: pathlib.Path, last_step: int):
    """The file, without the steps after the checkpoint that the run goes on from."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _step_of(line) <= last_step]
    path.write_text("".join(kept))
    return path.open("a")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # A line that a crash cut off.
        return float("inf")
