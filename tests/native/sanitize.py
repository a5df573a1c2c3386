# SPDX-License-Identifier: MIT
"""Builds each operator's CPU kernels with the compiler's sanitizers and runs the operator's stress.cc.

`python tests/native/sanitize.py`
"""

import argparse
import itertools
import os
import pathlib
import subprocess
import tempfile

from targets import OPERATORS, ROOT, UNDEFINED

# The compiler's level for each sanitizer: what compiles and runs soonest. Without optimization the
# thread sanitizer runs three times as long.
SANITIZERS = {"address,undefined": "-O0", "thread": "-Og"}
# With little memory, small problems are divided like large ones. The tiles of AVX-512 run on any
# processor: compiled for narrower vectors, they compute the same. Models that give the same bits
# replace the instructions for pairs of bfloat16 and for tiles of pairs.
FLAGS = {
    "baseline": ["-DJAX_DCN_LITTLE_MEMORY"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-DJAX_DCN_EMULATE_AVX512"],
    "avx512_bf16": ["-DJAX_DCN_EMULATE_AVX512", "-DJAX_DCN_EMULATE_AVX512_BF16"],
}


def build(operator: str, sanitizer: str, instruction_set: str, program: pathlib.Path) -> None:
    sources = (
        "cpu/runtime/executor.cc",
        "cpu/runtime/memory.cc",
        f"cpu/{operator}/kernels.cc",
        f"tests/native/{operator}/stress.cc",
    )
    subprocess.run(
        [
            os.environ.get("CXX", "c++"),
            "-std=gnu++17",
            SANITIZERS[sanitizer],
            "-g",
            "-pthread",
            "-Wno-psabi",
            f"-fsanitize={sanitizer}",
            *(UNDEFINED if "undefined" in sanitizer else ["-fno-sanitize-recover=all"]),
            f"-DJAX_DCN_ISA={instruction_set}",
            f"-DJAX_DCN_STRESSED={instruction_set}",
            *FLAGS[instruction_set],
            f"-I{ROOT}",
            *(str(ROOT / source) for source in sources),
            "-o",
            str(program),
        ],
        check=True,
    )


def stress(operator: str, sanitizer: str, instruction_set: str, problems: int) -> str:
    """Returns what the run printed; raises `CalledProcessError` if a sanitizer objects."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "stress")
        build(operator, sanitizer, instruction_set, program)
        return subprocess.check_output([program, str(problems)], text=True).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=300, help="random problems for each build")
    parser.add_argument("--instruction-set", choices=FLAGS, default="avx2")
    arguments = parser.parse_args()
    for operator, sanitizer in itertools.product(OPERATORS, SANITIZERS):
        output = stress(operator, sanitizer, arguments.instruction_set, arguments.problems)
        print(f"{operator}: {sanitizer}: {output}")


if __name__ == "__main__":
    main()
