# SPDX-License-Identifier: MIT
"""Runs the tests of several devices, on eight that share this machine's processor.

To run them alone: `JAX_DCN_TEST_DEVICES=8 pytest tests/devices/eight`.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent / "eight"


@pytest.mark.parametrize("file", sorted(path.stem for path in FOLDER.glob("test_*.py")))
def test_several_devices(file):
    environment = os.environ | {"JAX_DCN_TEST_DEVICES": "8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", FOLDER / f"{file}.py"]
    run = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[2], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
