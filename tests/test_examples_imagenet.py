# SPDX-License-Identifier: MIT
"""The ImageNet example trains exactly alike, interrupted or not, on one device or several."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from sklearn.datasets import load_sample_images

from examples.imagenet.__main__ import main
from examples.imagenet.logs import Log

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 6
TRAIN = (
    "train imagenet --depth 10 --width 8 --stages 4 5 --image-size 32 --dtype float32 --workers 0 "
    f"--batch-size 8 --steps {STEPS} --warmup-epochs 0.2 --checkpoint-every 2 --log-every 1"
).split()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> pathlib.Path:
    """Pieces of the two photographs that come with scikit-learn, as JPEGs."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, count in (("train", 12), ("val", 5)):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                top, left = random.integers(0, np.array(image.shape[:2]) - 60)
                piece = Image.fromarray(image[top : top + 48 + index, left : left + 60])
                piece.save(folder / part / name / f"{index}.jpg")
    return folder


@pytest.fixture(scope="session")
def compilations(tmp_path_factory) -> dict[str, str]:
    """Environment in which commands share what they compile, and draw numbers as here."""
    folder = tmp_path_factory.getbasetemp() / "compilations"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",  # Compiles several times faster than the default.
    }


@pytest.fixture(scope="module", autouse=True)
def like_the_commands(compilations):
    """Shared compilations, and the promotion that optax and flax's batch normalisation need."""
    changed = {name.lower(): value for name, value in compilations.items()}
    changed["jax_persistent_cache_min_compile_time_secs"] = 0.0
    changed["jax_numpy_dtype_promotion"] = "standard"
    before = {name: getattr(jax.config, name) for name in changed}
    _configure(changed)
    yield
    _configure(before)


def _configure(values: dict):
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once.


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def arrays_of(folder: pathlib.Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: weights, their average, momentum."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        items = [
            checkpointer.restore((folder / "checkpoints" / str(step) / item).resolve())
            for item in ("weights", "training")
        ]
    leaves, _ = jax.tree_util.tree_flatten_with_path(items)
    return {jax.tree_util.keystr(path): np.asarray(array) for path, array in leaves}


def assert_same_arrays(folder: pathlib.Path, other: pathlib.Path):
    arrays, others = arrays_of(folder), arrays_of(other)
    assert arrays.keys() == others.keys() and len(arrays) > 100
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name, strict=True)


def losses(folder: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(photographs, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(*TRAIN, "--data", photographs, "--output", folder) == 0
    return folder


def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    photographs, uninterrupted, tmp_path, monkeypatch, capsys
):
    command = [*TRAIN, "--data", photographs, "--output", tmp_path]

    def interrupt(log, step, **_):
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", interrupt)
        assert run(*command) == 130
    assert "same command" in capsys.readouterr().err
    assert run(*command) == 0
    assert "Resumes after step 4 of 6." in capsys.readouterr().out
    assert_same_arrays(uninterrupted, tmp_path)


KILLED = """
import os, signal, sys
from examples.imagenet.__main__ import main
rename = os.rename
def killed_before_checkpoint_4(source, target, *rest):
    if str(target).endswith("checkpoints/4"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, *rest)
os.rename = killed_before_checkpoint_4
main(sys.argv[1:])
"""


def test_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    photographs, uninterrupted, compilations, tmp_path, capsys
):
    command = list(map(str, [*TRAIN, "--data", photographs, "--output", tmp_path]))
    environment = os.environ | compilations | {"JAX_ENABLE_X64": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command], env=environment, cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    partial = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != "2"]
    assert len(partial) == 1 and partial[0].startswith("4.")
    assert run(*command) == 0
    assert "Resumes after step 2 of 6." in capsys.readouterr().out
    assert_same_arrays(uninterrupted, tmp_path)
    losses(tmp_path)  # Every step is in the log, once.


def test_loss_curve_of_two_devices_equals_that_of_one(
    photographs, uninterrupted, compilations, tmp_path
):
    environment = (
        os.environ
        | compilations
        | {
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
    )
    command = [*TRAIN, "--data", photographs, "--output", tmp_path]
    subprocess.run(
        [sys.executable, "-m", "examples.imagenet", *map(str, command)],
        env=environment,
        cwd=ROOT,
        check=True,
    )
    # Sums over the batch are added up in another order.
    np.testing.assert_allclose(losses(tmp_path), losses(uninterrupted), rtol=2e-5)
