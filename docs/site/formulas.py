# SPDX-License-Identifier: MIT
"""Formulas of pages and docstrings as MathML, made when the site is built: nothing is fetched to show them.

Docstrings write them as Sphinx does, pages as GitHub does.
"""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig

DIRECTIVE = ".. math::"
FENCE = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = r":math:`([^`]+)`|\$`([^`]+)`\$"


class Fences(Preprocessor):
    """The fences of pages become the directive of docstrings."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines of a page without fences of formulas."""
        text = FENCE.sub(lambda match: f"{DIRECTIVE} {match[1].strip()}", "\n".join(lines))
        return text.split("\n")


class Directives(BlockProcessor):
    """Formulas with a paragraph of their own."""

    def test(self, parent: ElementTree.Element, block: str) -> bool:
        """Whether the block is a formula."""
        return block.startswith(DIRECTIVE)

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        """Moves the first block into `parent`."""
        formula = convert(blocks.pop(0).removeprefix(DIRECTIVE), display="block")
        element = ElementTree.SubElement(parent, "div", {"class": "formula"})
        element.text = self.parser.md.htmlStash.store(formula)


class Inline(InlineProcessor):
    """Formulas in a sentence."""

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[str, int, int]:
        """The formula, and the part of `data` that it replaces."""
        formula = self.md.htmlStash.store(convert(match[1] or match[2]))
        return formula, match.start(), match.end()


class Formulas(Extension):
    """Adds formulas to Markdown, before code and escapes are looked for."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Registers the three of them."""
        md.preprocessors.register(Fences(md), "formula_fences", 40)
        md.parser.blockprocessors.register(Directives(md.parser), "formula_directives", 200)
        md.inlinePatterns.register(Inline(INLINE, md), "formula_inline", 200)


def on_config(config: MkDocsConfig) -> None:
    """MkDocs calls this before it reads pages."""
    config.markdown_extensions.append(Formulas())
