# SPDX-License-Identifier: MIT
"""Dependencies point one way: operators import what they share, and never each other."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ("operator", "sampling")
LEAVES = ("arguments", "public")  # Files that import no other of the package.


def sources() -> dict[str, str]:
    """The text of every file of the package, by the name of its module."""
    found = {}
    for path in sorted((ROOT / "jax_dcn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def rooms(files: dict[str, str]) -> list[str]:
    """The operators that have a room."""
    parts = [module.split(".") for module in files]
    return sorted({p[2] for p in parts if len(p) > 3 and p[1] == "_src" and p[2] not in SHARED})


def imports(text: str) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "jax_dcn"}


def reached(files: dict[str, str], module: str) -> set[str]:
    """The modules of the package that importing `module` runs, but for the packages around it."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in files and name not in found:
            found.add(name)
            waiting += imports(files[name])
    return found


def violations(files: dict[str, str]) -> list[str]:
    """What points the wrong way."""
    wrong = []
    operators = rooms(files)
    for module, text in files.items():
        room = module.split(".")[2] if module.startswith("jax_dcn._src.") else None
        if room not in (*SHARED, *operators):
            continue
        allowed = {"sampling": ("sampling",), "operator": ("operator",)}.get(room, (room, *SHARED))
        for name in imports(text) - {"jax_dcn._src"}:
            if not name.startswith(tuple(f"jax_dcn._src.{a}" for a in (*allowed, *LEAVES))):
                wrong.append(f"{module} imports {name}")
        named = [other for other in operators if other != room and other in text]
        wrong += [f"{module} names {other}" for other in named]
    for operator in operators:
        reference = reached(files, f"jax_dcn._src.{operator}.reference")
        native = [m for m in reference if m.endswith((".native", ".libraries", ".extension"))]
        wrong += [f"the reference of {operator} imports {module}" for module in native]
    installation = [module for module in files if module.startswith("jax_dcn.installation.")]
    wrong += [f"{m} names {o}" for m in installation for o in operators if o in files[m]]
    return wrong


def test_dependencies_point_one_way():
    files = sources()
    assert {"deform_conv2d", "deform_roi_pool"} <= set(rooms(files))
    assert violations(files) == []


PLANTED = {
    "jax_dcn._src.deform_conv2d.rules": "from jax_dcn._src.deform_roi_pool import geometry",
    "jax_dcn._src.deform_roi_pool.layer": "# The twin of deform_conv2d.",
    "jax_dcn._src.sampling.positions": "from jax_dcn._src.operator import folding",
    "jax_dcn._src.operator.folding": "import jax_dcn._src.sampling.positions",
    "jax_dcn._src.operator.sharding": "# As in deform_conv2d.",
    "jax_dcn._src.operator.blockwise": "def f():\n    from jax_dcn._src.operator import libraries",
    "jax_dcn._src.deform_conv2d.reference": "from jax_dcn._src.deform_conv2d.native import attributes",
    "jax_dcn._src.deform_conv2d.geometry": "import jax_dcn",
    "jax_dcn.installation.selfcheck": "OPERATORS['deform_conv2d']",
}


@pytest.mark.parametrize("module", PLANTED)
def test_a_planted_violation_is_found(module):
    files = sources()
    planted = files | {module: files[module] + "\n" + PLANTED[module]}
    assert set(violations(planted)) > set(violations(files))
