# SPDX-License-Identifier: MIT
"""Models how a call of `deform_conv2d` on CPU would scale to more cores than there are.

`python -m benchmarks.cpu.scaling`

Every work item of every loop of a call runs on one thread, in order, and is timed. From these times
follows how long the call would take on more cores: loops one after the other, each core with a
share of the items and then with what others have left, the time between loops as on one thread. This
is a model: its cores share no caches and no memory bandwidth, keep their clock rate, and start at
once. On the cores that are there, the last column compares the model's speed-up with a measured one.
"""

import argparse
import os
import pathlib
import tempfile

from benchmarks.cpu.scaling import model
from benchmarks.cpu.scaling.program import FLAGS, Program
from jax_dcn._src.operator import libraries
from tests.deform_conv2d.cases import WORKLOADS, Case

CORES = (2, 4, 8, 16, 32, 64)


def instruction_set() -> str:
    """The instruction set of this processor whose float32 kernels are timed.

    The sets that multiply bfloat16 have the float32 kernels of AVX-512.
    """
    name = libraries.describe("cpu").split(",")[0]
    return name if name in FLAGS else "avx512"


def speed_ups(program: Program, case: Case, mode: str, cores, calls: int) -> list[float]:
    """The modelled speed-up for each number of cores."""
    one, *many = (model.seconds(program.loops(case, mode, n, calls), n) for n in (1, *cores))
    return [one / seconds for seconds in many]


def check(program: Program, case: Case, mode: str, cores: int, calls: int) -> str:
    """The modelled and the measured speed-up on cores that are there."""
    (modelled,) = speed_ups(program, case, mode, [cores], calls)
    one, many = (program.seconds(case, mode, n, calls) for n in (1, cores))
    return f"{modelled:.2f} {one / many:.2f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = {case.name: case for case in WORKLOADS}
    parser.add_argument("--workloads", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--modes", nargs="+", choices=("forward", "training"), default=["training"])
    parser.add_argument("--cores", nargs="+", type=int, default=CORES)
    parser.add_argument("--calls", type=int, default=15, help="of which the least times count")
    parser.add_argument("--instruction-set", choices=FLAGS, default=instruction_set())
    options = parser.parse_args(arguments)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print("modelled speed-up by number of cores (only the cores of the check are real)")
    print(f"{'cores':16}", *(f"{n:6}" for n in options.cores), f"  {here}: modelled, measured")
    with tempfile.TemporaryDirectory() as folder:
        program = Program(options.instruction_set, pathlib.Path(folder))
        for mode in options.modes:
            for case in (cases[name] for name in options.workloads):
                found = speed_ups(program, case, mode, options.cores, options.calls)
                checked = check(program, case, mode, here, options.calls)
                print(
                    f"{case.name + ' ' + mode:16}",
                    *(f"{s:6.2f}" for s in found),
                    f"  {checked}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
