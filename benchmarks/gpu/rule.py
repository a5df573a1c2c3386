# SPDX-License-Identifier: MIT
"""Measured times correct the rule that chooses a path on CUDA: the factors of the cost model."""

import contextlib
import os
import statistics
from collections.abc import Iterator

from benchmarks.gpu.contestants import MODES, NUMBERS, arrays_of
from jax_dcn._src.deform_conv2d import cost
from tests.deform_conv2d.cases import Case


def expected_times(gpu: cost.Gpu, case: Case, number: str, mode: str) -> dict[str, float]:
    """Microseconds of each path by the cost model."""
    arrays, _ = arrays_of(case, NUMBERS[number][0])
    wrt = ("x", "kernel", "offset", "mask", "bias") if mode == "backward" else ()
    return cost.microseconds(gpu, *arrays[:3], wrt=wrt, geometry=case.geometry)


def invented(expected: dict[str, float]) -> dict:
    """Times as if a GPU had measured them."""
    return {"measured": {"fused": 3 * expected["fused"], "columns": 2 * expected["columns"]}}


@contextlib.contextmanager
def on_path(path: str) -> Iterator[None]:
    """Lowers programs to one path on CUDA."""
    before = os.environ.get(cost.VARIABLE)
    os.environ[cost.VARIABLE] = path
    try:
        yield
    finally:
        del os.environ[cost.VARIABLE]
        if before is not None:
            os.environ[cost.VARIABLE] = before


def ratio(times: dict[str, float]) -> float:
    return times["fused"] / times["columns"]


def correction(gpu: cost.Gpu, found: list[dict]) -> dict:
    """The factors of the cost model that the measured times ask for, and what each rule gets wrong."""
    factors = {}
    for mode in MODES:
        errors = [ratio(f["measured"]) / ratio(f["expected"]) for f in found if f["mode"] == mode]
        factors[mode] = round(statistics.geometric_mean(errors), 2) if errors else 1.0

    def wrong(factors: dict[str, float]) -> list[str]:
        return [
            f"{f['layer']}, {f['mode']}"
            for f in found
            if (ratio(f["expected"]) * factors[f["mode"]] < 1) != (ratio(f["measured"]) < 1)
        ]

    return {
        "gpu": gpu.name,
        "write into jax_dcn/_src/deform_conv2d/cost.py": factors,
        "wrong now": wrong({mode: getattr(gpu, mode) for mode in MODES}),
        "wrong with these factors": wrong(factors),
        "microseconds": [dict(f) for f in found],
    }
