# SPDX-License-Identifier: MIT
"""Makes the tables and the plots of results files: `python -m benchmarks.cpu.report`.

Writes a picture for each file, docs/images/cpu.png for cpu.json, and into README.md what stands
between its two markers.
"""

import argparse
import json
import pathlib
import re

from benchmarks.cpu.engines import CONVOLUTIONS, ENGINES, OURS, PEERS
from benchmarks.cpu.measure import MODES
from benchmarks.cpu.plot import plot
from benchmarks.cpu.results import TITLES, Results, mean, relative, targets

ROOT = pathlib.Path(__file__).parents[2]
FILES = [ROOT / "benchmarks/results" / name for name in ("cpu.json", "cpu_amx.json")]
PICTURE = "![Times relative to an ordinary convolution](docs/images/{}.png)"
OTHERS = [(engine, "float32") for engine in (*PEERS, *CONVOLUTIONS)]
MARKER = re.compile("(<!-- made by benchmarks.cpu.report -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def times_table(results: Results, mode: str, threads: int) -> str:
    """Milliseconds of every engine, and the roofline: how much of the peak the products reach.

    All of them are counted, also those with samples outside the image, which we leave out.
    """
    engines = [e for e in ENGINES if results.fastest([e], results.workloads[0], mode, threads)]
    peak = results.report["peak_gflops"][str(threads)]
    header = ["", *(TITLES.get(e, e) for e in engines), "GFLOP/s", f"of {peak:.0f}"]
    rows = [header]
    for group in results.workloads:
        times = [results.milliseconds(group, mode, threads, engine=e) for e in engines]
        gflops = results.gflops(group, mode, threads)
        cells = ["-" if t is None else f"{t:.2f}" for t in times]
        rows.append([group, *cells, f"{gflops:.1f}", f"{gflops / peak:.0%}"])
    return markdown(rows)


def targets_table(results: Results) -> str:
    rows = [["time of jax_dcn / time of", "worst", "geometric mean", "must", "aim", "reached"]]
    for t in targets(results):
        rows.append(
            [
                t.name,
                f"{t.worst:.3g}",
                f"{t.geometric_mean:.3g}",
                f"{t.must:.3g}",
                f"{t.aim:.3g}",
                t.verdict,
            ]
        )
    return markdown(rows)  # fmt: skip


def provenance(results: Results) -> str:
    report = results.report
    machine = report["machine"]
    versions = ", ".join(f"{TITLES.get(n, n)} {v}" for n, v in report["versions"].items())
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, kernels: {machine['kernels']}; "
        f"Python {machine['python']}; {versions}.",
        f"`{report['command']}`",
    ]
    lines += [f"Left out: {name} ({why})." for name, why in report["left_out"].items()]
    return "\n".join(lines)


def text(results: Results) -> str:
    """Everything, for people."""
    parts = [provenance(results)]
    for threads in results.threads:
        for mode in MODES if results.workloads else ():
            title = f"{mode}, {threads} threads, float32 (ms)"
            parts.append(f"{title}\n\n{times_table(results, mode, threads)}")
    parts.append(targets_table(results))
    for threads, memory in results.report["memory"].items():
        sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in memory.items())
        parts.append(f"memory in training, {threads} threads: {sizes}")
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """The README's table: times relative to the fastest ordinary convolution of float32."""
    threads = results.threads[-1]
    kernels = results.report["machine"]["kernels"].split(",")[0]
    rows = [[f"{kernels}, threads: {threads}", "forward", "forward and all gradients"]]
    for engine, dtype in ((OURS, "float32"), (OURS, "bfloat16"), *OTHERS):
        found = [relative(results, engine, mode, threads, dtype).values() for mode in MODES]
        name = TITLES.get(engine, f"**{engine}**") + (", bfloat16" if dtype == "bfloat16" else "")
        rows.append([name, *map(_mean_and_range, found)])
    return markdown(rows)


def _mean_and_range(ratios) -> str:
    found = [r for r in ratios if r]
    if not found:
        return "-"
    return f"{mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def write_readme(files: dict[str, Results], readme: pathlib.Path) -> None:
    """Writes a table and a picture for each file. The keys of `files` are the names of the pictures."""
    content = readme.read_text()
    parts = []
    for name, results in files.items():
        parts += [summary(results), provenance(results), PICTURE.format(name)]
    section = "\\g<1>{}\\g<2>".format("\n\n".join(parts) + "\n")
    assert MARKER.search(content), f"{readme} has no place for the table"
    readme.write_text(MARKER.sub(section, content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, nargs="+", default=FILES)
    arguments = parser.parse_args()
    files = {path.stem: Results(json.loads(path.read_text())) for path in arguments.json}
    for name, results in files.items():
        print(text(results))
        plot(results, ROOT / f"docs/images/{name}.png")
    write_readme(files, ROOT / "README.md")


if __name__ == "__main__":
    main()
