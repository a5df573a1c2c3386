# SPDX-License-Identifier: MIT
"""The kernels run clean under the compiler's sanitizers."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.native.targets import OPERATORS

NATIVE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler"
)


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, NATIVE / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("instruction_set", ["baseline", "avx512"])
def test_random_problems_run_clean(instruction_set):
    output = run("sanitize.py", "--problems", "100", "--instruction-set", instruction_set)
    assert output.count("100 problems") == 2 * len(OPERATORS)


def test_handlers_refuse_or_compute_whatever_they_are_called_with():
    assert run("fuzz.py", "--calls", "200").count("200 calls") == len(OPERATORS)
