# SPDX-License-Identifier: MIT
"""A process of its own for one engine and one number of threads, so that none disturbs another."""

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Iterator

from benchmarks.cpu import probes
from benchmarks.cpu.engines import Task, Unsupported

_SPAWN = multiprocessing.get_context("spawn")
_THREAD_VARIABLES = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """Forwards calls to the functions of `_Commands` in the other process."""

    def __init__(self, name: str, threads: int, package: str = "benchmarks.cpu.engines"):
        """`name` is a module of `package`."""
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(theirs, name, threads, package), daemon=True
        )
        with _limited_to(threads):
            self._process.start()
        theirs.close()

    def __call__(self, command: str, *arguments):
        """Raises what the command raised."""
        self._connection.send((command, arguments))
        result, error = self._connection.recv()
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._connection.close()
        self._process.join()


@contextlib.contextmanager
def _limited_to(threads: int) -> Iterator[None]:
    """Processes started within use so many threads, on as many processors where that can be said."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if processors:
        os.sched_setaffinity(0, sorted(processors)[-threads:])
    try:
        yield
    finally:
        if processors:
            os.sched_setaffinity(0, processors)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection, name: str, threads: int, package: str) -> None:
    commands = None
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        try:
            commands = commands or _Commands(name, threads, package)
            connection.send((getattr(commands, command)(*arguments), None))
        except Exception as error:
            connection.send((None, RuntimeError(f"{name}: {type(error).__name__}: {error}")))


class _Commands:
    def __init__(self, name: str, threads: int, package: str):
        self._engine, self._threads = importlib.import_module(f"{package}.{name}"), threads
        self._tasks: dict[tuple, Task] = {}

    def version(self) -> str:
        return self._engine.version()

    def prepare(self, *key) -> bool:
        """Whether the engine can do this. `key` is a case, a mode and a dtype."""
        try:
            self._tasks[key] = self._engine.prepare(*key, self._threads)
        except Unsupported:
            return False
        return True

    def results(self, *key) -> list:
        return list(self._tasks[key].results())

    def seconds(self, *key) -> probes.Sample:
        return probes.sample(self._tasks[key])

    def forget(self) -> None:
        self._tasks.clear()

    def memory(self, *key) -> dict[str, float]:
        return probes.memory(self._engine.prepare(*key, self._threads))

    def peak_gflops(self) -> float:
        return probes.peak_gflops()
