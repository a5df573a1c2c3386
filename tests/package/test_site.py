# SPDX-License-Identifier: MIT
"""The site: pages in the order of a user's questions, nothing dead, nothing fetched, nothing raw."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'jax-dcn[docs]'")
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("latex2mathml", reason="latex2mathml is not installed")
pytest.importorskip("mkdocstrings_handlers", reason="mkdocstrings is not installed")

ROOT = pathlib.Path(__file__).parents[2]
SECTIONS = ["Start", "Migrate", "Train", "Export", "Devices", "Reference", "Internals"]
# What the site is made of.
SOURCES = (
    "docs",
    "examples",
    "jax_dcn",
    ".github",
    "benchmarks/results",
    "README.md",
    "CHANGELOG.md",
    "mkdocs.yml",
)


def build(folder: pathlib.Path, config: pathlib.Path = ROOT / "mkdocs.yml"):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(
        [*command, "--config-file", str(config)], cwd=config.parent, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}


def test_sections_have_the_order_of_a_users_questions(pages):
    tabs = re.search(r'<ul class="md-tabs__list">(.*?)</ul>', pages["index.html"], re.DOTALL)
    assert re.findall(r"<a[^>]*>\s*([^<]*?)\s*</a>", tabs[1]) == SECTIONS


def test_every_page_is_in_the_navigation(site, pages):
    config = (ROOT / "mkdocs.yml").read_text()
    shown = {page.removesuffix(".md") for page in re.findall(r"([\w/]+)\.md", config)}
    built = {page.removesuffix("/index.html").removesuffix(".html") for page in pages}
    assert built - {"404", "playground"} == shown


def test_formulas_are_typeset(pages):
    raw = [name for name, text in pages.items() if re.search(r":math:|\.\. math::|\$<code>", text)]
    assert not raw
    assert pages["reference/index.html"].count("<math") >= 3
    assert pages["semantics/index.html"].count("<math") >= 20


def test_pages_fetch_nothing(pages):
    fetched = r'<(?:script|img|iframe)[^>]*src="https?:[^"]*"|<link[^>]*rel="stylesheet"[^>]*href="https?:'
    assert not [name for name, text in pages.items() if re.search(fetched, text)]


def test_signatures_are_folded(pages):
    signatures = re.findall(
        r'<div class="[^"]*doc-signature[^"]*">(.*?)</div>',
        pages["reference/index.html"],
        re.DOTALL,
    )
    lines = [
        line
        for signature in signatures
        for line in re.sub(r"<[^>]*>|&[a-z]+;", "", signature).splitlines()
    ]
    assert len(signatures) > 10
    assert max(map(len, lines)) <= 90


def test_results_are_described_once(pages):
    """A result of several lines is one result."""
    texts = re.findall(
        r"Returns:</span>.*?<ul>(.*?)</ul>", pages["reference/index.html"], re.DOTALL
    )
    assert len(texts) > 5
    assert all(text.count("<li") == 1 for text in texts)


def test_drawings_fit_a_page_of_1400_pixels():
    """Blocks of text have at most as many columns as docs/site/style.css makes room for."""
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]:
        for block in re.findall(r"^```text\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            assert max(map(len, block.splitlines())) <= 92, f"{path.name}:\n{block}"


DEAD = ["nowhere.md", "install.md#nowhere", "../nowhere.py", "/install/", "images/nowhere.png"]


def test_dead_links_are_errors(tmp_path):
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "export.md"
    planted = "".join(f"[dead]({target})\n" for target in [*DEAD, "../README.md#speed"])
    page.write_text(f"{page.read_text()}\n{planted}")
    # The reference, but for its headings, takes most of the time.
    reference = tmp_path / "docs" / "reference.md"
    reference.write_text(re.sub(r"^(:::|    ).*$", "", reference.read_text(), flags=re.MULTILINE))
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert all("export.md" in warning for warning in warnings)
    assert len(warnings) == len(DEAD)
    assert all(any(f"'{target}'" in warning for warning in warnings) for target in DEAD)


def test_the_pytorch_program_of_the_checkpoints_page_runs(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    (program,) = re.findall(
        r"^```python\n(import numpy, torch.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    monkeypatch.chdir(tmp_path)
    exec(program, {"model": torch.nn.Conv2d(3, 4, 3), "images": torch.ones(2, 3, 8, 9)})
    assert (tmp_path / "expected.npz").exists()
