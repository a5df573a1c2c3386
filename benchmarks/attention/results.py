# SPDX-License-Identifier: MIT
"""Looks up what was measured, and divides it by what it is to be compared with."""

import dataclasses
import math
from collections.abc import Sequence

from benchmarks.attention.engines import DEPTHWISE, ENGINES, GATHER, OURS, PEERS, XLA
from benchmarks.cpu.measure import MODES

TITLES = {
    OURS: "**jax_dcn**",
    XLA: 'jax_dcn, `"xla"`',
    DEPTHWISE: "jax_dcn, depthwise `deform_conv2d`",
    "torch_grid_sample": "PyTorch `grid_sample`",
    "torch_ms_deform_attn": "torch-ms-deform-attn",
    "onnxruntime": "ONNX Runtime `GridSample`",
    GATHER: "four gathers in JAX",
}
HALF = "jax_dcn, bfloat16"


class Results:
    """A results file."""

    def __init__(self, report: dict):
        self.report = report

    @property
    def threads(self) -> list[int]:
        return sorted({row["threads"] for row in self.report["times"]})

    @property
    def cases(self) -> list[str]:
        return sorted({row["case"] for row in self.report["times"]})

    @property
    def engines(self) -> list[str]:
        return [engine for engine in ENGINES if engine in self.report["versions"]]

    def milliseconds(
        self, case: str, mode: str, threads: int, engine: str = OURS, dtype: str = "float32"
    ) -> float | None:
        wanted = dict(case=case, mode=mode, threads=threads, engine=engine, dtype=dtype)
        rows = (row for row in self.report["times"] if wanted.items() <= row.items())
        return next((row["milliseconds"] for row in rows), None)

    def fastest(self, engines: Sequence[str], case: str, mode: str, threads: int) -> float | None:
        times = [self.milliseconds(case, mode, threads, engine) for engine in engines]
        return min((t for t in times if t is not None), default=None)

    def slower(self, engine: str, family: str, mode: str, threads: int) -> list[float]:
        """Times of an engine in times of ours, for the cases of a family: "A" or "D"."""
        dtype, engine = ("bfloat16", OURS) if engine == HALF else ("float32", engine)
        cases = [case for case in self.cases if case.startswith(family)]
        theirs = [self.milliseconds(c, mode, threads, engine, dtype) for c in cases]
        ours = [self.milliseconds(c, mode, threads) for c in cases]
        return [a / b for a, b in zip(theirs, ours, strict=True) if a is not None and b is not None]


@dataclasses.dataclass(frozen=True)
class Target:
    """The time of ours in times of another; below `must` is wanted, below `aim` hoped for."""

    name: str
    ratios: dict[str, float]
    must: float
    aim: float

    @property
    def worst(self) -> str:
        return max(self.ratios, key=self.ratios.__getitem__)

    @property
    def verdict(self) -> str:
        worst = self.ratios[self.worst]
        return "aim" if worst <= self.aim else "must" if worst <= self.must else "missed"


def targets(results: Results) -> list[Target]:
    """The targets of which something was measured."""
    found = []
    limits = {"A": {"forward": (0.6, 0.4), "training": (0.5, 0.3)}}
    limits["D"] = dict.fromkeys(MODES, (0.7, 0.5))
    against = {"A": PEERS, "D": (DEPTHWISE,)}
    for threads in results.threads:
        for family, modes in limits.items():
            for mode, (must, aim) in modes.items():
                ratios = {}
                for case in (c for c in results.cases if c.startswith(family)):
                    ours = results.milliseconds(case, mode, threads)
                    theirs = results.fastest(against[family], case, mode, threads)
                    if ours and theirs:
                        ratios[case] = ours / theirs
                name = f"{mode} / " + ("fastest peer" if family == "A" else "depthwise")
                found.append(Target(f"{name}, threads: {threads}", ratios, must, aim))
    found += [_halves(results), *_threads(results)]
    return [target for target in found if target.ratios]


def _halves(results: Results) -> Target:
    ratios = {}
    for threads in results.threads:
        half = results.milliseconds("A1", "forward", threads, dtype="bfloat16")
        single = results.milliseconds("A1", "forward", threads)
        if half and single:
            ratios[f"A1, threads: {threads}"] = half / single
    return Target("bfloat16 / float32, forward", ratios, 0.85, 0.6)


def _threads(results: Results) -> list[Target]:
    found = []
    for mode in MODES:
        ratios = {}
        for case in results.cases:
            one, two = (results.milliseconds(case, mode, threads) for threads in (1, 2))
            if one and two and one > 1:
                ratios[case] = two / one
        found.append(Target(f"2 threads / 1, {mode} of more than 1 ms", ratios, 0.6, 0.53))
    return found


def mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
