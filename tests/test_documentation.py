# SPDX-License-Identifier: MIT
"""The examples in the documentation run, as a user would run them, and print what they say."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("README.md", "docs/**/*.md", "jax_dcn/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "doctest", page],
        # XLA then compiles faster, as it does for the other tests.
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
