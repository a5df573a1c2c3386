# SPDX-License-Identifier: MIT
"""The C++ and CUDA rooms depend on each other in one direction: operators on shared rooms."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARED = {"common": {"ffi", "sampling"}, "cpu": {"runtime", "sampling"}}
SHARED["cuda"] = SHARED["cpu"]
MAY_INCLUDE = {"common": {"common"}, "cpu": {"common", "cpu"}, "cuda": {"common", "cuda"}}
OPERATORS = re.search(r"set\(JAX_DCN_OPERATORS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())[
    1
].split()


def sources(folder: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in sorted(folder.rglob("*")) if p.suffix in {".h", ".cc", ".cu", ".cuh"}]


def operators_named(path: pathlib.Path) -> set[str]:
    """The operators that a file names in code or comments, in any spelling."""
    text = path.read_text().lower().replace("_", "")
    return {operator for operator in OPERATORS if operator.replace("_", "") in text}


def test_every_operator_has_a_room_in_each_tree_and_every_other_room_is_shared():
    for tree, shared in SHARED.items():
        rooms = {path.parent.name for path in sources(ROOT / tree)} - {tree}
        assert rooms <= shared | set(OPERATORS), tree


@pytest.mark.parametrize("tree", MAY_INCLUDE)
def test_a_tree_includes_only_itself_and_common(tree):
    for path in sources(ROOT / tree):
        trees = set(re.findall(r'#include "(\w+)/', path.read_text())) - {"xla"}
        assert trees <= MAY_INCLUDE[tree], path


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_file_of_an_operator_names_another_operator(operator):
    for tree in SHARED:
        for path in sources(ROOT / tree / operator):
            assert operators_named(path) <= {operator}, path


@pytest.mark.parametrize(
    "room", [f"{tree}/{room}" for tree in SHARED for room in sorted(SHARED[tree])]
)
def test_no_shared_room_names_an_operator(room):
    for path in sources(ROOT / room):
        assert not operators_named(path), path
