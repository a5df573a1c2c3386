# SPDX-License-Identifier: MIT
"""The training loop keeps what can be kept, and nothing that is not finite."""

import dataclasses
import json
import math
import types

import pytest

from examples.imagenet.errors import UserError
from examples.imagenet.loop import Loop
from examples.imagenet.settings import Run


class Kept:
    """Checkpoints in a list."""

    latest = None

    def __init__(self):
        self.saved = []

    def save(self, state, description, result=None):
        self.saved.append((state, result))


class Counted(Loop):
    """A run whose state is the number of its steps."""

    def __init__(self, settings, checkpoints):
        self.settings, self.checkpoints = settings, checkpoints
        self.placement, self.description = self, None
        self.schedule = lambda step: 0.1
        self.steps, self.state = settings.steps, 0
        self.loss, self.moves, self.tested = {}, {}, {"top1": 0.5}

    def put_batch(self, batch):
        return batch

    def train_step(self, state, batch):
        state += self.moves.get(state + 1, 1)
        return state, {"loss": self.loss.get(state, 1.0)}

    def batches(self, first):
        return iter(range(first, self.steps))

    def test(self):
        if isinstance(self.tested, Exception):
            raise self.tested
        return self.tested

    def show(self, result):
        return str(result)


@pytest.fixture
def loop(tmp_path):
    settings = Run(tmp_path, steps=12, checkpoint_every=2, evaluate_every=5, log_every=100)
    return Counted(settings, Kept())


def test_checkpoints_are_kept_when_due_and_with_every_test(loop):
    loop.run()
    expected = [(step, loop.tested if step in (5, 10, 12) else None) for step in (2, 4, 5, 6, 8)]
    assert loop.checkpoints.saved == [*expected, (10, loop.tested), (12, loop.tested)]


def test_run_that_is_longer_than_asked_for_is_refused(loop):
    loop.checkpoints.latest, loop.checkpoints.restore = 13, lambda state, description: 13
    with pytest.raises(UserError, match=r"has taken 13 steps, and 12 are asked for"):
        loop.run()


def test_state_whose_test_fails_is_kept(loop, capsys):
    loop.tested = UserError("Cannot decode an image.")
    with pytest.raises(UserError, match="Cannot decode"):
        loop.run()
    assert loop.checkpoints.saved == [(2, None), (4, None), (5, None)]
    assert "Keeps step 5 without its test" in capsys.readouterr().out


def test_process_whose_test_fails_does_not_wait_for_others_to_save(loop, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    loop.tested = UserError("Cannot decode an image.")
    with pytest.raises(UserError, match="Cannot decode"):
        loop.run()
    assert loop.checkpoints.saved == [(2, None), (4, None)]


@pytest.mark.parametrize(("step", "last"), [(3, 2), (5, 4)], ids=["checkpoint", "test"])
def test_state_after_a_loss_that_is_not_finite_is_not_kept(loop, step, last):
    loop.loss = dict.fromkeys(range(step, 13), math.nan)
    with pytest.raises(UserError, match=f"The loss of step {max(4, step)} is nan: lower"):
        loop.run()
    assert loop.checkpoints.saved[-1] == (last, None)


def test_state_that_is_not_finite_is_not_kept_though_its_loss_is(loop):
    loop.moves = {6: math.inf}
    with pytest.raises(UserError, match="Weights after step 6 are not finite: lower"):
        loop.run()
    assert loop.checkpoints.saved[-1] == (5, loop.tested)


def test_speed_is_that_of_training_without_tests(loop, monkeypatch, tmp_path):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("examples.imagenet.logs.time.perf_counter", lambda: clock.now)

    def lasting(seconds, function):
        def slow(*arguments):
            clock.now += seconds
            return function(*arguments)

        return slow

    loop.settings = dataclasses.replace(loop.settings, log_every=2)
    loop.train_step, loop.test = lasting(1, loop.train_step), lasting(100, loop.test)
    loop.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    speeds = {line["images_per_second"] for line in lines if "images_per_second" in line}
    assert speeds == {loop.settings.batch_size}
