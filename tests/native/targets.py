# SPDX-License-Identifier: MIT
"""The operators that the build names, and the targets of a library that was built without Python."""

import ctypes
import pathlib
import re

import jax

# Flags for the undefined-behaviour sanitizer, used together with address sanitizer. Casts of numbers that do
# not fit are checked too. Null and wrapping pointers are not: their checks take a third of the compiler's
# time, and address sanitizer stops at an access through such a pointer.
UNDEFINED = (
    "-fsanitize=float-cast-overflow",
    "-fno-sanitize=null,pointer-overflow",
    "-fno-sanitize-recover=all",
)
ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / "tests/native/targets.cc"
OPERATORS = re.search(r"set\(JAX_DCN_OPERATORS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())[
    1
].split()


def definitions(entry: str, operators: list[str]) -> list[str]:
    """What the compiler defines for a library of these operators, listed by the function `entry`."""
    macros = " ".join(f"JAX_DCN_OPERATOR({operator})" for operator in operators)
    return [f"-DJAX_DCN_OPERATORS={macros}", f"-DJAX_DCN_LIBRARY={entry}"]


def capsules(library: str) -> dict[str, object]:
    """The handlers of a library that contains `targets.cc`, by target."""
    functions = ctypes.CDLL(library)
    functions.TargetName.restype = ctypes.c_char_p
    functions.TargetHandler.restype = ctypes.c_void_p
    return {
        functions.TargetName(index).decode(): jax.ffi.pycapsule(
            ctypes.c_void_p(functions.TargetHandler(index))
        )
        for index in range(functions.TargetCount())
    }
