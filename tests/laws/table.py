# SPDX-License-Identifier: MIT
"""The table of operators that the laws run over.

Each folder of `tests/` with a file `row.py` is a row of the table: the file assigns an `Operator` to
`OPERATOR`. A new operator adds its file, and every law runs on the operator.
"""

import importlib
import pathlib
from collections.abc import Callable, Iterable

import pytest

from tests.laws.operator import Operator

ROOT = pathlib.Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(ROOT.glob("tests/*/row.py"))
]
OPERATORS: list[Operator] = [importlib.import_module(name).OPERATOR for name in MODULES]

every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


def every(rows: Callable[[Operator], Iterable], names: str):
    """Runs a test on every operator with every row that `rows` gives for it."""
    found = [
        pytest.param(
            operator, *(row if isinstance(row, tuple) else (row,)), id=_identity(operator, row)
        )
        for operator in OPERATORS
        for row in rows(operator)
    ]
    return pytest.mark.parametrize(f"operator, {names}", found)


def _identity(operator: Operator, row) -> str:
    return "-".join(map(str, (operator, *(row if isinstance(row, tuple) else (row,)))))
