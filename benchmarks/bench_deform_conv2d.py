# SPDX-License-Identifier: MIT
"""Times `deform_conv2d` on CPU against XLA and against the ordinary convolution of the same shape.

Forward, and forward with the gradients of all arguments ("training"), float32.
`python -m benchmarks.bench_deform_conv2d`
"""

import argparse
import json
import math
import pathlib

import jax
import numpy as np

from benchmarks.ordinary_convolution import jax_convolution, torch_convolution, with_gradients
from benchmarks.timing import machine, medians
from jax_dcn import deform_conv2d
from tests.cases import WORKLOADS, Case

MODES = ("forward", "training")
CONVOLUTIONS = ("convolution (jax)", "convolution (torch)")


def contestants(case: Case) -> dict[str, dict]:
    """For each name, a function for each mode."""
    arrays, grad_y = case.arrays(), case.cotangent()
    x, kernel, _, _, bias = arrays
    present = [a for a in arrays if a is not None]

    def operator(implementation):
        def f(x, kernel, offset, *rest):
            mask = rest[0] if case.modulated else None
            options = dict(**case.options, implementation=implementation)
            return deform_conv2d(x, kernel, offset, mask, rest[-1], **options)

        return with_gradients(f, present, grad_y)

    found = {
        "native": operator("native"),
        "xla": operator("xla"),
        CONVOLUTIONS[0]: jax_convolution(case, x, kernel, bias, grad_y),
        CONVOLUTIONS[1]: torch_convolution(case, x, kernel, bias, grad_y),
    }
    return {name: functions for name, functions in found.items() if functions}


def check(case: Case, native, xla) -> None:
    """A fast wrong answer is none."""
    for mode in MODES:
        pairs = zip(jax.tree.leaves(native[mode]()), jax.tree.leaves(xla[mode]()), strict=True)
        for actual, expected in pairs:
            error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
            assert error < 1e-4, f"{case}: native and xla differ by {error} in {mode}"


def measure(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contestant, by mode."""
    functions = contestants(case)
    check(case, functions["native"], functions["xla"])
    return {
        mode: {
            name: 1e3 * seconds
            for name, seconds in medians({n: f[mode] for n, f in functions.items()}, rounds).items()
        }
        for mode in MODES
    }


def ratios(times: dict[str, float]) -> dict[str, float]:
    """Native's time relative to the others', and to the faster of the convolutions."""
    convolution = min(times[name] for name in CONVOLUTIONS if name in times)
    return {
        "xla": times["native"] / times["xla"],
        "convolution": times["native"] / convolution,
    }


def geometric_mean(values) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def print_table(results: dict[str, dict[str, dict[str, float]]]) -> None:
    for mode in MODES:
        names = list(next(iter(results.values()))[mode])
        print(
            f"\n{mode} (ms)\n{'':4}" + "".join(f"{n:>21}" for n in [*names, "native / convolution"])
        )
        for case, modes in results.items():
            row = [f"{t:21.2f}" for t in modes[mode].values()]
            print(f"{case:4}" + "".join(row) + f"{ratios(modes[mode])['convolution']:21.2f}")
        for other in ("xla", "convolution"):
            mean = geometric_mean([ratios(modes[mode])[other] for modes in results.values()])
            print(f"native / {other}, geometric mean: {mean:.2f}")


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
