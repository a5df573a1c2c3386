# SPDX-License-Identifier: MIT
"""The examples in the documentation run, as a user would run them, and print what they say."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RUN = """
import doctest, importlib, sys

def tests_of(module):
    for name, value in vars(module).items():
        # A class has the name of the public module, so that `doctest.testmod` would not find it.
        if getattr(value, "__module__", "").startswith("jax_dcn"):
            yield from doctest.DocTestFinder().find(value, name, False, vars(module))

def examples(page):
    if page.endswith(".md"):
        return doctest.testfile(page, module_relative=False, encoding="utf-8")
    tests = [test for test in tests_of(importlib.import_module(page)) if test.examples]
    assert tests, f"no examples were found in {page}"
    runner = doctest.DocTestRunner()
    for test in tests:
        # Several modules import a function; its examples run once.
        if test.docstring not in seen:
            seen.add(test.docstring)
            runner.run(test)
    return runner.summarize(verbose=False)

seen = set()
failures = sum(examples(page).failed for page in sys.argv[1:])
sys.exit(failures > 0)
"""


def with_examples(*patterns: str) -> list[pathlib.Path]:
    paths = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT) for path in paths if ">>>" in path.read_text()]


PAGES = [str(path) for path in with_examples("README.md", "docs/**/*.md")]
MODULES = [".".join(path.with_suffix("").parts) for path in with_examples("jax_dcn/**/*.py")]


@pytest.mark.parametrize("pages", [p for p in (PAGES, MODULES) if p], ids=lambda pages: pages[0])
def test_examples_run(pages):
    # In a process of their own, whose JAX is set up as a user's; all of them in one, to import once.
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, *pages],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
