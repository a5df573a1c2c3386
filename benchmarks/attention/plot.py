# SPDX-License-Identifier: MIT
"""Draws how many times as long as this library the others take."""

import pathlib

import matplotlib

from benchmarks.attention.engines import ENGINES, OURS
from benchmarks.attention.results import TITLES, Results
from benchmarks.cpu.measure import MODES

WIDTH = 0.8  # of the bars of a case together
PALETTE = ("tab:red", "tab:pink", "tab:purple", "tab:blue", "tab:green", "tab:orange", "0.5")
COLORS = dict(zip(ENGINES, PALETTE, strict=True))


def plot(results: Results, path: pathlib.Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = results.threads[-1]
    figure, panels = plt.subplots(len(MODES), 1, figsize=(9, 6), sharex=True, layout="constrained")
    for panel, mode in zip(panels, MODES, strict=True):
        _draw(panel, results, mode, threads)
        panel.set(yscale="log", ylabel=f"{mode}\ntime / time of jax_dcn")
        panel.axhline(1, color=COLORS[OURS], linewidth=1)
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="outside upper center")
    panels[-1].set_xticks(range(len(results.cases)), results.cases, rotation=20)
    panels[0].set_title(
        f"float32, threads: {threads}; the line is jax_dcn, and a higher bar is slower",
        fontsize="medium",
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(panel, results: Results, mode: str, threads: int) -> None:
    others = [engine for engine in results.engines if engine != OURS]
    width = WIDTH / len(others)
    for index, engine in enumerate(others):
        bars = {}
        for place, case in enumerate(results.cases):
            theirs = results.milliseconds(case, mode, threads, engine)
            ours = results.milliseconds(case, mode, threads)
            if theirs and ours:
                bars[place + (index + 0.5) * width - WIDTH / 2] = theirs / ours
        title = TITLES[engine].replace("`", "").replace("*", "")
        panel.bar(bars.keys(), bars.values(), width, label=title, color=COLORS[engine], bottom=0)
