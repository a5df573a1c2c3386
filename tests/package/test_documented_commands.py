# SPDX-License-Identifier: MIT
"""Commands and C++ in the documentation: targets, modules, options and extras exist; C++ compiles."""

import itertools
import pathlib
import re
import shlex
import shutil
import subprocess
import tomllib

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PATTERNS = ("*.md", ".github/*.md", "docs/*.md", "examples/*/*.md", "cuda/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
OURS = ("benchmarks", "examples", "jax_dcn")


def commands(text: str) -> list[list[str]]:
    """The words of the commands in a page's blocks, and of those within its sentences."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        span.replace("\n", " ")
        for span in re.findall(r"(?<!`)`((?:make|pip|python)\s[^`]*)`", text)
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def missing(words: list[str], page: pathlib.Path) -> list[str]:
    """What a command names and the repository does not have."""
    rest = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    program, *arguments = rest
    absent = [name for name in cmake_options(words) if name not in cmake()]
    makefile = read("Makefile")
    if program == "make":
        absent += [
            target
            for target in (word.partition("=")[0] for word in arguments)
            if not re.search(rf"^{target}(:| \?=)|\$\({target}\)", makefile, re.MULTILINE)
        ]
    elif program == "pip":
        absent += [extra for extra in extras(arguments) if extra not in project_extras()]
    elif program.startswith("--"):  # options of the program that the page is about
        absent += missing_options(rest, page.parent)
    elif "-m" in arguments and arguments[arguments.index("-m") + 1].split(".")[0] in OURS:
        path = ROOT / arguments[arguments.index("-m") + 1].replace(".", "/")
        starts = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        absent += missing_options(arguments, starts) if starts.exists() else [str(starts)]
    files = (word.split("::")[0] for word in arguments if re.match(r"(tests|benchmarks)/", word))
    return absent + [file for file in files if not (ROOT / file).exists()]


def missing_options(words: list[str], program: pathlib.Path) -> list[str]:
    """Options that neither argparse is told of, nor a field of the settings is named for."""
    folder = program if program.is_dir() else program.parent
    # A module beside others reads its own options; a package's may be in any of its files.
    files = [program] if program.suffix and program.stem != "__main__" else folder.rglob("*.py")
    source = "\n".join(path.read_text() for path in files)
    return [
        word
        for word in words
        if word.startswith("--") and word != "--help"
        if not re.search(rf'"{word}"|\b{word[2:].replace("-", "_")}\b *:', source)
    ]


def cmake_options(words: list[str]) -> list[str]:
    return re.findall(r"\b(JAX_DCN_\w+)=", " ".join(words))


def cmake() -> str:
    return "".join(read(f"{folder}/CMakeLists.txt") for folder in (".", "cpu", "cuda"))


def extras(words: list[str]) -> list[str]:
    found = re.findall(r"(?:jax-dcn|\.)\[([\w,-]+)\]", " ".join(words))
    return [extra for extras in found for extra in extras.split(",")]


def project_extras() -> list[str]:
    return list(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])


def read(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_what_there_is(page):
    for words in commands(page.read_text()):
        assert not missing(words, page), shlex.join(words)


@pytest.mark.parametrize(
    "command",
    [
        "make tset",
        "pip install 'jax-dcn[flax,cuda11]'",
        "pip install . -Ccmake.define.JAX_DCN_GPU=ON",
        "python -m jax_dcn --self-check",
        "python -m examples.image_net",
        "python -m examples.imagenet train imagenet --batchsize 8",
        "python -m pytest tests/deform_conv2d/test_deform.py -k plain",
        "--coordinators HOST:PORT",
    ],
)
def test_commands_that_name_something_else_are_found(command):
    assert missing(shlex.split(command), ROOT / "examples" / "imagenet" / "README.md")


DECLARATIONS = """
#include "common/ffi/library.h"
using namespace jax_dcn;
namespace deform_conv2d { std::vector<Target> CpuTargets(); }
"""


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_cpp_compiles():
    (block,) = re.findall(
        r"^```cpp\n(.*?)^```", read("docs/extending.md"), re.DOTALL | re.MULTILINE
    )
    compiler = [
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        f"-I{ROOT}",
        "-isystem",
        jax.ffi.include_dir(),
    ]
    source = DECLARATIONS + block
    done = subprocess.run([*compiler, "-xc++", "-"], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
