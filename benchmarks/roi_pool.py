# SPDX-License-Identifier: MIT
"""Times `deform_roi_pool` and `deform_roi_align` on CPU against XLA.

Forward, and forward with the gradients of all arguments ("training"), float32.
`python -m benchmarks.roi_pool --json benchmarks/results/roi_cpu.json`
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine, medians
from tests.deform_roi_pool.cases import WORKLOADS, RoICase

MODES = ("forward", "training")
IMPLEMENTATIONS = ("native", "xla")


def with_gradients(f: Callable, arrays, grad_y) -> dict[str, Callable]:
    """`f` alone, and with the gradients of all its arguments, compiled and waited for."""

    def train(grad_y, *arrays):
        y, vjp = jax.vjp(f, *arrays)
        return y, vjp(grad_y)

    arrays, grad_y = tuple(map(jnp.asarray, arrays)), jnp.asarray(grad_y)
    forward, both = jax.jit(f), jax.jit(train)
    return {
        "forward": lambda: jax.block_until_ready(forward(*arrays)),
        "training": lambda: jax.block_until_ready(both(grad_y, *arrays)),
    }


def functions(case: RoICase, implementation: str) -> dict:
    """A function for each mode."""
    x, rois, offset, mask = case.arrays("float32")
    operator = case.function(implementation)

    def f(x, *rest):
        rest = list(rest)
        displacement = rest.pop(0) if case.displaced else None
        return operator(x, rois, displacement, rest.pop(0) if case.modulated else None)

    present = [a for a in (x, offset, mask) if a is not None]
    return with_gradients(f, present, case.cotangent("float32"))


def check(case: RoICase, native: dict, xla: dict) -> None:
    """A fast wrong answer is none."""
    for mode in MODES:
        pairs = zip(jax.tree.leaves(native[mode]()), jax.tree.leaves(xla[mode]()), strict=True)
        for actual, expected in pairs:
            error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
            assert error < 1e-3, f"{case}: native and xla differ by {error} in {mode}"


def measure(case: RoICase, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each implementation, by mode."""
    found = {name: functions(case, name) for name in IMPLEMENTATIONS}
    check(case, found["native"], found["xla"])
    times = {mode: medians({n: f[mode] for n, f in found.items()}, rounds) for mode in MODES}
    return {mode: {n: 1e3 * s for n, s in row.items()} for mode, row in times.items()}


def print_table(results: dict[str, dict[str, dict[str, float]]]) -> None:
    for mode in MODES:
        header = [*IMPLEMENTATIONS, "native / xla"]
        print(f"\n{mode} (ms)\n{'':4}" + "".join(f"{name:>14}" for name in header))
        ratios = {
            case: modes[mode]["native"] / modes[mode]["xla"] for case, modes in results.items()
        }
        for case, modes in results.items():
            cells = [*modes[mode].values(), ratios[case]]
            print(f"{case:4}" + "".join(f"{cell:14.2f}" for cell in cells))
        print(f"native / xla, geometric mean: {statistics.geometric_mean(ratios.values()):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=[case.name for case in WORKLOADS])
    parser.add_argument("--rounds", type=int, default=5, help="times each function is timed")
    parser.add_argument("--json", type=pathlib.Path, help="file that the results are written to")
    arguments = parser.parse_args()
    cases = [c for c in WORKLOADS if not arguments.workloads or c.name in arguments.workloads]
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))
    results = {}
    for case in cases:
        results[case.name] = measure(case, arguments.rounds)
        print(f"{case} done", flush=True)
    print_table(results)
    if arguments.json:
        report = {"machine": machine(), "milliseconds": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
