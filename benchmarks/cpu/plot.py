# SPDX-License-Identifier: MIT
"""Draws times relative to the fastest ordinary convolution of the same shape."""

import pathlib

import matplotlib

from benchmarks.cpu.engines import ENGINES
from benchmarks.cpu.measure import MODES
from benchmarks.cpu.results import TITLES, Results, relative

WIDTH = 0.8  # of the bars of a workload together
PALETTE = ("tab:red", "tab:blue", "tab:green", "tab:orange", "0.4", "0.7")
COLORS = dict(zip(ENGINES, PALETTE, strict=True))


def plot(results: Results, path: pathlib.Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = results.threads[-1]
    figure, panels = plt.subplots(len(MODES), 1, figsize=(9, 6), sharex=True, layout="constrained")
    for panel, mode in zip(panels, MODES, strict=True):
        bars = {e: relative(results, e, mode, threads) for e in ENGINES}
        _draw(panel, {e: values for e, values in bars.items() if values})
        panel.set_ylabel(f"{mode}\ntime / fastest convolution")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=6, loc="outside upper center")
    panels[-1].set_xticks(range(len(results.workloads)), results.workloads)
    panels[0].set_title(f"float32, threads: {threads}; lower is better", fontsize="medium")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(panel, bars: dict[str, dict[str, float]]) -> None:
    width = WIDTH / len(bars)
    for index, (engine, values) in enumerate(bars.items()):
        shift = (index + 0.5) * width - WIDTH / 2
        positions = [i + shift for i, v in enumerate(values.values()) if v]
        heights = [v for v in values.values() if v]
        title = TITLES.get(engine, engine)
        panel.bar(positions, heights, width, label=title, color=COLORS[engine])
    panel.axhline(1, color="black", linewidth=0.8)
