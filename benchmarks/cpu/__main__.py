# SPDX-License-Identifier: MIT
"""Times `deform_conv2d` on CPU against other engines and against ordinary convolutions.

`python -m benchmarks.cpu --json benchmarks/results/cpu.json`
"""

import argparse
import json
import pathlib
import shlex
import sys

from benchmarks.cpu import measure, report
from benchmarks.cpu.engines import ENGINES, OURS
from benchmarks.cpu.results import Results
from benchmarks.cpu.worker import Worker
from benchmarks.timing import machine, merged
from tests.deform_conv2d.cases import WORKLOADS

# What the memory is measured of: the largest workload.
MEMORY = (next(case for case in WORKLOADS if case.name == "W6"), "training", "float32")


def start(engines, threads: int) -> tuple[dict[str, Worker], dict[str, str], dict[str, str]]:
    """A worker for each engine, their versions, and why others are left out."""
    workers, versions, left_out = {}, {}, {}
    for name in engines:
        worker = Worker(name, threads)
        try:
            versions[name] = worker("version")
            workers[name] = worker
        except RuntimeError as error:
            left_out[name] = str(error)
            worker.close()
    return workers, versions, left_out


def run(cases, engines, threads, rounds: int, chosen=None) -> dict:
    """What the report is made of: the groups of `chosen` names, all of them by default."""
    results = {"machine": machine(), "peak_gflops": {}, "memory": {}, "times": []}
    for count in threads:
        workers, results["versions"], results["left_out"] = start(engines, count)
        results["peak_gflops"][str(count)] = workers[OURS]("peak_gflops")
        for name, group in measure.groups(cases, list(workers)).items():
            if chosen is None or name in chosen:
                print(f"threads: {count}, {name}", file=sys.stderr, flush=True)
                rows = measure.measure(workers, group, rounds)
                results["times"] += [{"group": name, "threads": count, **row} for row in rows]
        results["memory"][str(count)] = workers[OURS]("memory", *MEMORY)
        for worker in workers.values():
            worker.close()
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*(case.name for case in WORKLOADS), "depthwise", "batch"]
    parser.add_argument("--groups", nargs="+", choices=names, help="default: all")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="times that each task is visited")
    parser.add_argument(
        "--json", type=pathlib.Path, help="file of results, which keeps older ones of this machine"
    )
    options = parser.parse_args(arguments)
    threads = sorted(set(options.threads))
    results = run(WORKLOADS, options.engines, threads, options.rounds, options.groups)
    if options.json and options.json.exists():
        results = merged(json.loads(options.json.read_text()), results, ("threads", "group"))
    # Not the groups: the file may be filled by several calls.
    results["command"] = shlex.join(["python", "-m", "benchmarks.cpu", "--json", str(options.json)])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.text(Results(results)))


if __name__ == "__main__":
    main()
