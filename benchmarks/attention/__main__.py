# SPDX-License-Identifier: MIT
"""Times `ms_deform_attn` on CPU against other engines.

`python -m benchmarks.attention --json benchmarks/results/attention.json`
"""

import argparse
import json
import pathlib
import shlex
import sys

from benchmarks.attention import measure, report
from benchmarks.attention.cases import CASES, case
from benchmarks.attention.engines import ENGINES, GATHER, OURS, XLA
from benchmarks.attention.results import Results
from benchmarks.cpu.measure import MODES
from benchmarks.timing import machine, merged

# The programs whose memory is measured.
MEMORY = ("A1", "training", "float32")


def run(names, engines, threads, rounds: int, modes=MODES) -> dict:
    """The rows that the report shows."""
    results: dict = {"machine": machine(), "times": [], "memory": {}}
    for count in threads:
        workers, results["versions"], results["left_out"] = measure.start(engines, count)
        for name in names:
            print(f"threads: {count}, {name}", file=sys.stderr, flush=True)
            rows = measure.measure(workers, case(name), rounds, modes)
            results["times"] += [{"threads": count, **row} for row in rows]
        if MEMORY[0] in names and MEMORY[1] in modes:
            results["memory"][str(count)] = memory(workers)
        for worker in workers.values():
            worker.close()
    return results


def memory(workers) -> dict[str, float]:
    """10^6 bytes beside arguments and results, in training."""
    name, *rest = MEMORY
    measured = [engine for engine in (OURS, XLA, GATHER) if engine in workers]
    return {e: workers[e]("memory", case(name), *rest)["beside"] for e in measured}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [c.name for c in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=3, help="times that each task is visited")
    parser.add_argument(
        "--json", type=pathlib.Path, help="file of results, which keeps older ones of this machine"
    )
    options = parser.parse_args(arguments)
    results = run(
        options.cases, options.engines, sorted(set(options.threads)), options.rounds, options.modes
    )
    if options.json and options.json.exists():
        old = json.loads(options.json.read_text())
        results = merged(old, results, ("threads", "case", "mode"))
    # Not the cases: the file may be filled by several calls.
    results["command"] = shlex.join(
        ["python", "-m", "benchmarks.attention", "--json", str(options.json)]
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.text(Results(results)))


if __name__ == "__main__":
    main()
