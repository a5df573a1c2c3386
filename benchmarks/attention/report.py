# SPDX-License-Identifier: MIT
"""Makes tables of a results file."""

from benchmarks.attention.engines import ENGINES, OURS
from benchmarks.cpu.measure import MODES
from benchmarks.cpu.report import markdown


def milliseconds(results: dict, **which) -> float | None:
    wanted = {"dtype": "float32", "engine": OURS} | which
    for row in results["times"]:
        if wanted.items() <= row.items():
            return row["milliseconds"]
    return None


def table(results: dict, mode: str, threads: int) -> str:
    engines = [e for e in ENGINES if e in results["versions"]]
    rows = [["", *engines, "bfloat16"]]
    for name in dict.fromkeys(row["case"] for row in results["times"]):
        which = dict(case=name, mode=mode, threads=threads)
        times = [milliseconds(results, engine=e, **which) for e in engines]
        times.append(milliseconds(results, dtype="bfloat16", **which))
        rows.append([name, *("-" if t is None else f"{t:.2f}" for t in times)])
    return markdown(rows)


def text(results: dict) -> str:
    """Everything, for people."""
    parts = []
    for threads in sorted({row["threads"] for row in results["times"]}):
        for mode in MODES:
            parts.append(f"{mode}, {threads} threads (ms)\n\n{table(results, mode, threads)}")
    return "\n\n".join([*parts, str(results["memory"])])
