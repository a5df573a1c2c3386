# SPDX-License-Identifier: MIT
"""Cross-compiles the CPU kernels for 64-bit ARM, and runs each operator's stress.cc under emulation.

`python tests/native/aarch64.py`, with Debian's packages g++-aarch64-linux-gnu and qemu-user
"""

import argparse
import os
import pathlib
import subprocess
import tempfile

from fuzz import OPERATORS

ROOT = pathlib.Path(__file__).parents[2]
COMPILER = os.environ.get("AARCH64_CXX", "aarch64-linux-gnu-g++")
EMULATOR = os.environ.get("AARCH64_EMULATOR", "qemu-aarch64")
FLAGS = "-std=gnu++17 -O2 -static -pthread -Wall -Wextra -Werror -Wno-psabi"
DEFINITIONS = "-DJAX_DCN_ISA=baseline -DJAX_DCN_STRESSED=baseline -DJAX_DCN_LITTLE_MEMORY"


def run(sources: tuple[str, ...], *arguments: str) -> str:
    """What the program prints."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "program")
        paths = [ROOT / source for source in sources]
        flags = [*FLAGS.split(), *DEFINITIONS.split(), f"-I{ROOT}"]
        subprocess.run([COMPILER, *flags, *paths, "-o", program], check=True)
        return subprocess.check_output([EMULATOR, program, *arguments], text=True).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--problems", type=int, default=30, help="random problems for each operator"
    )
    arguments = parser.parse_args()
    print(run(("tests/native/halves.cc",)))
    for operator in OPERATORS:
        runtime = ("cpu/runtime/executor.cc", "cpu/runtime/memory.cc")
        kernels, stress = f"cpu/{operator}/kernels.cc", f"tests/native/{operator}/stress.cc"
        output = run((*runtime, kernels, stress), str(arguments.problems))
        print(f"{operator}: {output}")


if __name__ == "__main__":
    main()
