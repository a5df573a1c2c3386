# SPDX-License-Identifier: MIT
"""Times the implementations on this machine's first device, in about a minute."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from jax_dcn._src.operator.implementation import platform_of
from jax_dcn._src.operator.problem import Benchmark
from jax_dcn._src.registry import OPERATORS

_SECONDS = 2.0  # of measurement, for each time printed


def benchmark() -> None:
    """Prints milliseconds of each operator that has a benchmark, without and with gradients."""
    for operator in OPERATORS.values():
        if operator.benchmark is not None:
            _print_table(operator.benchmark)
    print("Each cell: forward / forward and all gradients.")


def _print_table(table: Benchmark) -> None:
    print(f"{jax.devices()[0]} ({platform_of(jax.devices()[0])}), {table.title}; ms")
    print(f"{'layer':16}" + "".join(f"{name:>24}" for name in table.functions))
    for layer, make_arrays in table.layers.items():
        arrays = make_arrays()
        cells = [
            f"{_milliseconds(f, arrays):.2f} / {_milliseconds(_gradients(f), arrays):.2f}"
            for f in table.functions.values()
        ]
        print(f"{layer:16}" + "".join(f"{cell:>24}" for cell in cells))


def _gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    def value_and_gradients(*arrays: jax.Array) -> Any:
        every = tuple(range(len(arrays)))
        return jax.value_and_grad(lambda *arrays: (f(*arrays) ** 2).sum(), every)(*arrays)

    return value_and_gradients


def _milliseconds(f: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> float:
    """Median time of one call, without transfers and compilation."""
    compiled = jax.jit(f)
    jax.block_until_ready(compiled(*arrays))
    times: list[float] = []
    while sum(times) < _SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
