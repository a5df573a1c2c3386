# SPDX-License-Identifier: MIT
"""Makes the tables and the plot of a results file: `python -m benchmarks.attention.report`.

Writes docs/images/attention_cpu.png, and into README.md what stands between its two markers.
"""

import argparse
import json
import pathlib
import re

from benchmarks.attention.engines import OURS
from benchmarks.attention.plot import plot
from benchmarks.attention.results import HALF, TITLES, Results, mean, targets
from benchmarks.cpu.measure import MODES
from benchmarks.cpu.report import ROOT, markdown

PICTURE = ROOT / "docs/images/attention_cpu.png"
MARKER = re.compile("(<!-- made by benchmarks.attention.report -->\n).*?(<!-- end -->)", re.DOTALL)
FAMILIES = {"A": "attention", "D": "DCNv3 shapes"}


def times_table(results: Results, mode: str, threads: int) -> str:
    """Milliseconds of every engine."""
    rows = [["", *(TITLES[e] for e in results.engines), HALF]]
    for case in results.cases:
        times = [results.milliseconds(case, mode, threads, e) for e in results.engines]
        times.append(results.milliseconds(case, mode, threads, dtype="bfloat16"))
        rows.append([case, *("-" if t is None else f"{t:.2f}" for t in times)])
    return markdown(rows)


def targets_table(results: Results) -> str:
    rows = [["time of jax_dcn / time of", "worst", "of", "must", "aim", "reached"]]
    for t in targets(results):
        ratio = f"{t.ratios[t.worst]:.2f}"
        rows.append([t.name, ratio, t.worst, f"{t.must:.2f}", f"{t.aim:.2f}", t.verdict])
    return markdown(rows)


def provenance(results: Results) -> str:
    machine, versions = results.report["machine"], results.report["versions"]
    packages = "jax_dcn", "jax", "torch"
    named = [f"{name} {machine[name]}" for name in packages]
    named += [
        f"{name.replace('_', '-')} {versions[name]}"
        for name in ("torch_ms_deform_attn", "onnxruntime")
        if name in versions
    ]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, kernels: {machine['kernels']}; "
        f"Python {machine['python']}; {', '.join(named)}.",
        f"`{results.report['command']}`",
    ]
    lines += [f"Left out: {name} ({why})." for name, why in results.report["left_out"].items()]
    return "\n".join(lines)


def text(results: Results) -> str:
    """Everything, for people."""
    parts = [provenance(results)]
    for threads in results.threads:
        for mode in MODES:
            title = f"{mode}, {threads} threads, float32 (ms)"
            parts.append(f"{title}\n\n{times_table(results, mode, threads)}")
    parts.append(targets_table(results))
    for threads, memory in results.report["memory"].items():
        sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in memory.items())
        parts.append(
            f"memory beside arguments and results in training of A1, {threads} threads: {sizes}"
        )
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """The README's table: how many times as long as this library the others take."""
    threads = results.threads[-1]
    columns = [(family, mode) for family in FAMILIES for mode in MODES]
    names = {"forward": "forward", "training": "and gradients"}
    rows = [[f"threads: {threads}", *(f"{FAMILIES[f]}, {names[m]}" for f, m in columns)]]
    for engine in (OURS, HALF, *results.engines[1:]):
        cells = [_mean_and_range(results.slower(engine, f, m, threads)) for f, m in columns]
        rows.append([TITLES.get(engine, engine), *cells])
    return markdown(rows)


def _mean_and_range(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    if min(ratios) == max(ratios):
        return _digits(ratios[0])
    return f"{_digits(mean(ratios))} ({_digits(min(ratios))} to {_digits(max(ratios))})"


def _digits(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def write_readme(results: Results, readme: pathlib.Path) -> None:
    content = readme.read_text()
    picture = f"![Times relative to this library]({PICTURE.relative_to(ROOT)})"
    section = "\n\n".join([summary(results), provenance(results), picture]) + "\n"
    assert MARKER.search(content), f"{readme} has no place for the table"
    readme.write_text(MARKER.sub(lambda m: m[1] + section + m[2], content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", type=pathlib.Path, default=ROOT / "benchmarks/results/attention.json"
    )
    results = Results(json.loads(parser.parse_args().json.read_text()))
    print(text(results))
    plot(results, PICTURE)
    write_readme(results, ROOT / "README.md")


if __name__ == "__main__":
    main()
