# SPDX-License-Identifier: MIT
"""Commands of the examples run in this process as they would in their own, and share compilations."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from examples.imagenet.logs import Log

DEVICES = jax.devices()  # The suite has several.


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """All devices, of which commands see one."""
    return DEVICES


@pytest.fixture(scope="session")
def compilations(tmp_path_factory) -> dict[str, str]:
    """Environment in which commands share what they compile, and draw numbers as here."""
    folder = tmp_path_factory.getbasetemp() / "compilations"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",  # Compiles several times faster than the default.
        # As the suite is set up.
        "JAX_ENABLE_X64": "1",
    }


@pytest.fixture(scope="module")
def like_the_commands(compilations, devices):
    """One device, shared compilations, and the promotion that optax and flax's layers need."""
    names = ("jax_compilation_cache_dir", "jax_default_prng_impl")
    changed: dict = {name: compilations[name.upper()] for name in names}
    changed["jax_persistent_cache_min_compile_time_secs"] = 0.0
    changed["jax_numpy_dtype_promotion"] = "standard"
    before = {name: getattr(jax.config, name) for name in changed}
    _configure(changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices[:1])
        yield
    _configure(before)


def _configure(values: dict):
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once.


@pytest.fixture
def run_interrupted(monkeypatch, capsys):
    """Runs a command of training, interrupts it after step 12, and resumes it."""

    def interrupt(log, step, **_):
        if step == 12:
            raise KeyboardInterrupt

    def run_twice(run, command, steps):
        with monkeypatch.context() as patch:
            patch.setattr(Log, "write", interrupt)
            assert run(*command) == 130
        message = "\nInterrupted. The same command goes on after step 10.\n"
        assert capsys.readouterr().err.endswith(message)
        assert run(*command) == 0
        assert f"Resumes after step 10 of {steps}." in capsys.readouterr().out

    return run_twice
