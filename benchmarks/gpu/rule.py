# SPDX-License-Identifier: MIT
"""Measured times correct the rule that chooses a path on CUDA: the factors of the cost model."""

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator

from benchmarks.gpu.contestants import ARGUMENTS, NUMBERS, arrays_of, gradients_of, programs
from jax_dcn._src.deform_conv2d import cost
from tests.deform_conv2d.cases import Case

# The gradients by which each part is measured. The gradient of x is left out: both paths gather it.
GRADIENTS: dict[str, tuple[str, ...]] = {
    "forward": (),
    "kernel": ("kernel",),
    "samples": ("offset", "mask"),
}


def program_of(part: str, case: Case, number: str) -> Callable:
    """A part of the operator alone, as a function of the operands."""
    forward = programs(case, number, "native")["forward"]
    if part == "forward":
        return forward
    operands = [ARGUMENTS[Case].index(name) for name in GRADIENTS[part]]
    return gradients_of(forward, arrays_of(case, NUMBERS[number][0])[1], operands)


def expected_times(gpu: cost.Gpu, case: Case, number: str, part: str) -> dict[str, float]:
    """Microseconds of each path by the cost model, without the factors of earlier measurements."""
    arrays, _ = arrays_of(case, NUMBERS[number][0])
    plain = dataclasses.replace(gpu, **dict.fromkeys(cost.PARTS, 1.0))
    options = dict(wrt=GRADIENTS[part], geometry=case.geometry)
    return {p: cost.microseconds(plain, *arrays[:3], {part: p}, **options) for p in cost.PATHS}


def invented(expected: dict[str, float]) -> dict:
    """Times as if a GPU had measured them."""
    return {"measured": {"fused": 3 * expected["fused"], "columns": 2 * expected["columns"]}}


def on_path(path: str) -> contextlib.AbstractContextManager[None]:
    """Lowers programs to one path on CUDA."""
    return environment_variable(cost.VARIABLE, path)


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def ratio(times: dict[str, float]) -> float:
    return times["fused"] / times["columns"]


def correction(gpu: cost.Gpu, found: list[dict]) -> dict:
    """The factors of the cost model that the measured times ask for, and what each rule gets wrong."""
    factors = {}
    for part in cost.PARTS:
        errors = [ratio(f["measured"]) / ratio(f["expected"]) for f in found if f["part"] == part]
        factors[part] = round(statistics.geometric_mean(errors), 2) if errors else 1.0

    def wrong(factors: dict[str, float]) -> list[str]:
        return [
            f"{f['layer']}, {f['part']}"
            for f in found
            if (ratio(f["expected"]) * factors[f["part"]] < 1) != (ratio(f["measured"]) < 1)
        ]

    return {
        "gpu": gpu.name,
        "write into jax_dcn/_src/deform_conv2d/cost.py": factors,
        "wrong now": wrong({part: getattr(gpu, part) for part in cost.PARTS}),
        "wrong with these factors": wrong(factors),
        "microseconds": [dict(f) for f in found],
    }
