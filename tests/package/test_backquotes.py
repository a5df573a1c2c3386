# SPDX-License-Identifier: MIT
"""The names that comments and docstrings speak of exist."""

import ast
import importlib
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("jax_dcn", "common", "cpu", "cuda")
SUFFIXES = (".py", ".h", ".cc", ".cu", ".cuh")
FILES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES
]
PATH = re.compile(r"[\w./-]+\.(?:py|h|cc|cu|cuh|md)")
# A compound name of the project: of two words or more, as functions, classes and types are called.
NAME = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z]\w*)+|[a-z]+\w*_\w+\w")


def comments(path: pathlib.Path) -> str:
    """The comments and docstrings of a file."""
    text = path.read_text()
    if path.suffix != ".py":
        return "\n".join(re.findall(r"//.*", text))
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    ]
    with path.open("rb") as file:
        found += [t.string for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    return "\n".join(found)


def code(path: pathlib.Path) -> str:
    """A file without its comments; strings stay, since targets and options are named in them."""
    text = path.read_text()
    return re.sub(r"//.*" if path.suffix != ".py" else r"#.*", "", text)


CODE = "\n".join(code(path) for path in FILES)
WORDS = set(re.findall(r"\w+", CODE))


def exists(name: str, path: pathlib.Path) -> bool:
    """Whether a name in backquotes in the file `path` exists, or is not a name of the project."""
    if name.startswith("jax_dcn."):
        return importable(name.rstrip("()"))
    if PATH.fullmatch(name):
        places = (path.parent, ROOT, ROOT / "jax_dcn", ROOT / "jax_dcn" / "_src")
        return any((place / name).exists() for place in places)
    if NAME.fullmatch(name):
        return name in WORDS or any(word.endswith(f"_{name}") for word in WORDS)
    return True


def importable(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def names(text: str) -> set[str]:
    """What is in single backquotes, and modules and paths of the project without backquotes."""
    quoted = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    modules = re.findall(r"\bjax_dcn(?:\.[A-Za-z_]\w*)+", text)
    paths = re.findall(r"\b(?:jax_dcn|common|cpu|cuda)(?:/\w+)+\.\w+", text)
    return {*quoted, *modules, *paths}


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_in_backquotes_exist(folder):
    unknown = [
        f"{path.relative_to(ROOT)}: `{name}`"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == folder
        for name in sorted(names(comments(path)))
        if not exists(name, path)
    ]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize(
    "name",
    ["jax_dcn.geometry.RoI", "jax_dcn.nnx.Missing", "mma.cuh", "DeformChunkCall", "no_such_f"],
)
def test_a_name_that_points_nowhere_is_found(name):
    assert not exists(name, ROOT / "jax_dcn" / "nnx.py")
