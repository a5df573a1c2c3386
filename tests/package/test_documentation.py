# SPDX-License-Identifier: MIT
"""The examples in the documentation run, as a user would run them, and print what they say."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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


def plain_blocks(page: pathlib.Path) -> list[str]:
    """Blocks of Python without prompts: they need packages that a user of JAX may lack."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if ">>>" not in block]


def test_the_block_of_export_runs(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    (block,) = plain_blocks(ROOT / "docs" / "export.md")
    monkeypatch.chdir(tmp_path)
    exec(block, {"model": nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0))})
    assert (tmp_path / "model.onnx").exists()


def test_the_blocks_of_checkpoints_run(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    save, compare = plain_blocks(ROOT / "docs" / "checkpoints.md")
    monkeypatch.chdir(tmp_path)
    theirs, ours = torch.nn.Conv2d(3, 2, 3), nnx.Conv(3, 2, (3, 3), padding=0, rngs=nnx.Rngs(0))
    exec(save, {"model": theirs, "images": torch.ones(1, 3, 5, 6)})
    names = {"jax": jax, "jnp": jnp, "np": np, "model": ours}
    with pytest.raises(AssertionError):
        exec(compare, names)
    ours.kernel[...] = jnp.asarray(theirs.weight.detach().numpy().transpose(2, 3, 1, 0))
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())
    exec(compare, names)


def test_no_other_block_is_left_out():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/*.md")]
    assert {p.name for p in pages if plain_blocks(p)} == {"export.md", "checkpoints.md"}
