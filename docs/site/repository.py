# SPDX-License-Identifier: MIT
"""The repository in the site: its address, its own Markdown files as pages, and links to its files."""

import os
import pathlib
import re
import subprocess
from functools import partial

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
# Pages whose text is a file outside docs/.
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": ".github/CONTRIBUTING.md",
    "examples/attention.md": "examples/attention/README.md",
    "examples/detection.md": "examples/detection/README.md",
    "examples/digits.md": "examples/digits/README.md",
    "examples/imagenet.md": "examples/imagenet/README.md",
    "examples/roi_pool.md": "examples/roi_pool/README.md",
}
SOURCES = {source: page for page, source in PAGES.items()}
# What a command has written into README.md, to be shown in a page.
MADE = re.compile(r"<!-- README: ([\w.]+) -->")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Finds the address of the repository in the checkout, unless mkdocs.yml has one."""
    config.repo_url = config.repo_url or _origin()
    config.repo_name = config.repo_name or "Repository"


def _origin() -> str:
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    address = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    address = re.sub(r"^git@([^:]+):", r"https://\1/", address).removesuffix(".git")
    return address if address.startswith("https://") else ""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages whose text lies elsewhere."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Fills in tables of the README; mends links that hold in the repository and not in the site."""
    markdown = MADE.sub(_made, markdown)
    target = partial(_link, page=page.file.src_uri, address=config.repo_url)
    return LINK.sub(target, markdown)


def _made(match: re.Match[str]) -> str:
    readme = (ROOT / "README.md").read_text()
    made = re.search(rf"<!-- made by {match[1]} -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    if made is None:
        raise ValueError(f"README.md has nothing that was made by {match[1]}.")
    return made[1].replace("](docs/", "](")


def _link(match: re.Match[str], page: str, address: str) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    folder = os.path.dirname(PAGES.get(page, f"docs/{page}"))
    path = os.path.normpath(os.path.join(folder, target))
    if ":" in target or path.startswith("..") or not (ROOT / path).exists():
        return match[0]  # Elsewhere, or dead, and MkDocs says so.
    if path in SOURCES or path.startswith("docs/"):
        inside = SOURCES.get(path) or path.removeprefix("docs/")
        return f"[{text}]({os.path.relpath(inside, os.path.dirname(page) or '.')}{anchor})"
    return f"[{text}]({address}/blob/main/{path}{anchor})" if address else text
