# SPDX-License-Identifier: MIT
"""The kernels run clean under the compiler's sanitizers."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "native" / "sanitize.py"


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
@pytest.mark.parametrize("instruction_set", ["baseline", "avx512"])
def test_random_problems_run_clean(instruction_set):
    arguments = ["--problems", "100", "--instruction-set", instruction_set]
    run = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("100 problems") == 2
