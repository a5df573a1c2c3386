# SPDX-License-Identifier: MIT
"""Looks up what was measured, and divides it by what it is to be compared with."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from benchmarks.cpu.engines import CONVOLUTIONS, OURS, PEERS
from benchmarks.cpu.measure import MODES

# torchvision's CPU operator (0.23, -O3), in times of the fastest ordinary convolution of the same
# shape, measured side by side with it on another processor (2 cores of an AMD EPYC with AVX-512).
# It has no package for the PyTorch measured here.
TORCHVISION = {
    ("forward", 2): 12.62,
    ("forward", 1): 6.84,
    ("training", 2): 24.75,
    ("training", 1): 14.23,
}

TITLES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "ncnn": "ncnn",
    "onednn_convolution": "oneDNN convolution",
    "xla_convolution": "XLA convolution",
}


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of a results file."""

    report: dict

    @property
    def threads(self) -> list[int]:
        return sorted({row["threads"] for row in self.report["times"]})

    @property
    def workloads(self) -> list[str]:
        """Names of the groups that compare engines on a workload."""
        return sorted({row["group"] for row in self.report["times"] if "flops" in row})

    def milliseconds(
        self, group: str, mode: str, threads: int, engine=OURS, **which
    ) -> float | None:
        """`which` may name a dtype or, in a group of several, a workload."""
        wanted = {"dtype": "float32"} | which
        wanted |= {"group": group, "mode": mode, "threads": threads, "engine": engine}
        for row in self.report["times"]:
            if wanted.items() <= row.items():
                return row["milliseconds"]
        return None

    def fastest(self, engines: Iterable[str], *key) -> float | None:
        times = [self.milliseconds(*key, engine=engine) for engine in engines]
        return min((t for t in times if t is not None), default=None)

    def gflops(self, group: str, mode: str, threads: int) -> float:
        """Of the matrix products alone: one forward, three in training."""
        flops = next(r["flops"] for r in self.report["times"] if r["group"] == group)
        products = 3 if mode == "training" else 1
        return products * flops / self.milliseconds(group, mode, threads) / 1e6

    def ratios(self, numerator: Callable, denominator: Callable, mode: str, threads) -> list[float]:
        """Of all workloads that have both; each is given a group, a mode and a number of threads."""
        keys = [(group, mode, count) for count in threads for group in self.workloads]
        pairs = [(numerator(*key), denominator(*key)) for key in keys]
        return [a / b for a, b in pairs if a and b]


def mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def relative(
    results: Results, engine: str, mode: str, threads: int, dtype="float32"
) -> dict[str, float | None]:
    """By workload, an engine's time over that of the fastest ordinary convolution of float32."""
    found = {}
    for group in results.workloads:
        time = results.milliseconds(group, mode, threads, engine=engine, dtype=dtype)
        convolution = results.fastest(CONVOLUTIONS, group, mode, threads)
        found[group] = time / convolution if time and convolution else None
    return found if any(found.values()) else {}


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure that should be small: the worst and the mean of ratios, and what was asked of it."""

    name: str
    ratios: list[float]
    must: float
    aim: float
    of_mean: bool = False

    @property
    def worst(self) -> float:
        return max(self.ratios)

    @property
    def geometric_mean(self) -> float:
        return mean(self.ratios)

    @property
    def verdict(self) -> str:
        value = self.geometric_mean if self.of_mean else self.worst
        return "aim" if value <= self.aim else "must" if value <= self.must else "missed"


def targets(results: Results) -> list[Target]:
    """Those that can be computed of what was measured."""
    found = [
        *_against_others(results),
        *_against_torchvision(results),
        *_against_ourselves(results),
        *_special(results),
    ]
    return [target for target in found if target.ratios]


def _against_others(results: Results) -> list[Target]:
    ours, threads = results.milliseconds, results.threads

    def engines(*key):
        return results.fastest(PEERS, *key)

    def convolution(*key):
        return results.milliseconds(*key, engine="onednn_convolution")

    return [
        Target("forward / fastest engine", results.ratios(ours, engines, "forward", threads), 0.95, 0.75),
        Target("forward / oneDNN convolution", results.ratios(ours, convolution, "forward", threads), 1.35, 1.1),
        Target("training / oneDNN convolution", results.ratios(ours, convolution, "training", threads), 2.0, 1.4),
    ]  # fmt: skip


def _against_torchvision(results: Results) -> list[Target]:
    def torchvision(group, mode, threads):
        convolution = results.fastest(CONVOLUTIONS, group, mode, threads)
        return convolution and convolution * TORCHVISION[mode, threads]

    ours = results.milliseconds
    return [
        Target(
            f"training / torchvision (multiple), threads: {threads}",
            results.ratios(ours, torchvision, "training", [threads]),
            must,
            aim,
            of_mean=True,
        )
        for threads, must, aim in ((2, 1 / 12, 1 / 17), (1, 1 / 7, 1 / 10))
        if threads in results.threads
    ]


def _against_ourselves(results: Results) -> list[Target]:
    ours, threads = results.milliseconds, results.threads

    def one_thread(group, mode, _):
        return ours(group, mode, 1)

    def forward(group, _, threads):
        return ours(group, "forward", threads)

    def half(dtype):
        return lambda *key: ours(*key, dtype=dtype)

    found = [
        Target(f"2 threads / 1 thread, {mode}", results.ratios(ours, one_thread, mode, [2]), 0.6, 0.53)
        for mode in MODES
        if {1, 2} <= set(threads)
    ]  # fmt: skip
    found.append(Target("jvp / forward", results.ratios(ours, forward, "jvp", threads), 3.2, 2.5))
    for mode in MODES:
        for dtype in ("bfloat16", "float16"):
            ratios = results.ratios(half(dtype), ours, mode, threads)
            multiplied = dtype == "bfloat16" and "_bf16" in results.report["machine"]["kernels"]
            limits = (0.75, 0.55) if multiplied else (1.0, 1.0)
            found.append(Target(f"{dtype} / float32, {mode}", ratios, *limits))
    return found


def _special(results: Results) -> list[Target]:
    ours, found = results.milliseconds, []
    for mode in MODES:
        ratios = [
            ours("batch", mode, t, workload="N=32") / 32 / one
            for t in results.threads
            if (one := ours("batch", mode, t, workload="N=1"))
        ]
        found.append(Target(f"an image of 32 / one alone, {mode}", ratios, 1.05, 0.95))
    for mode in MODES:
        ratios = [
            ours("depthwise", mode, t) / other
            for t in results.threads
            if (other := ours("depthwise", mode, t, engine="xla_convolution"))
        ]
        found.append(Target(f"depthwise {mode} / XLA convolution", ratios, 3, 1.5))
    return found
