# SPDX-License-Identifier: MIT
"""Compiles every `.cu` file for every GPU architecture, and tells what its kernels take of a GPU.

`python tests/native/compile_cuda.py` compares with the table in `cuda_resources.txt`; a kernel that
spills registers to memory is an error. `--record` writes the table.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
TABLE = pathlib.Path(__file__).with_name("cuda_resources.txt")
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")


def nvcc() -> str | None:
    return shutil.which(os.environ.get("CUDACXX", "nvcc"))


def version() -> str:
    text = subprocess.check_output([nvcc(), "--version"], text=True)
    return re.search(r"release [\d.]+, V([\d.]+)", text)[1]


def report(source: pathlib.Path) -> str:
    """What the assembler says of a file's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(pathlib.Path(folder, "kernels.o"))
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        flags = ["-std=c++17", "-O3", "-Xptxas=-v", "-Werror=all-warnings", f"-I{ROOT}"]
        command = [nvcc(), *flags, *targets, "-c", str(source), "-o", output]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{source} does not compile:\n{done.stderr}")
    return done.stderr


def resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, shared memory, stack and spills of each kernel and architecture, in the report."""
    found = {}
    for entry in re.split(r"Compiling entry function ", text)[1:]:
        name, architecture = re.match(r"'(\S+)' for '(\w+)'", entry).groups()
        number = lambda pattern, entry=entry: int((re.search(pattern, entry) or [0, 0])[1])
        found[_readable(name), architecture] = dict(
            registers=number(r"Used (\d+) registers"),
            shared=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
    return found


def _readable(mangled: str) -> str:
    """The kernel's name and template arguments."""
    name = subprocess.check_output(["c++filt", mangled], text=True).strip()
    name = re.sub(r"jax_dcn::|\(anonymous namespace\)::|^void ", "", name)
    return name[: name.index("(")] if "(" in name else name


def table(found: dict[tuple[str, str], dict[str, int]]) -> str:
    """A line for each kernel: registers by architecture, then shared memory where it is static."""
    kernels = sorted({kernel for kernel, _ in found})
    lines = [
        f"nvcc {version()}: registers of a thread on {', '.join(f'sm_{a}' for a in ARCHITECTURES)}"
    ]
    for kernel in kernels:
        used = [found[kernel, f"sm_{a}"] for a in ARCHITECTURES]
        registers = " ".join(f"{u['registers']:4}" for u in used)
        shared = max(u["shared"] for u in used)
        lines.append(f"{kernel:55}{registers}" + (f"  {shared} bytes shared" if shared else ""))
    return "\n".join(lines) + "\n"


def recorded() -> set[str]:
    """The kernels in the table."""
    lines = TABLE.read_text().splitlines()[1:]
    return {re.sub(r"(\s+\d+)+(\s+bytes shared)?$", "", line) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the table")
    record = parser.parse_args().record
    sources = sorted((ROOT / "cuda").rglob("*.cu"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = resources("".join(pool.map(report, sources)))
    spilled = {kernel: used for kernel, used in found.items() if used["spills"] or used["stack"]}
    now = table(found)
    if record:
        TABLE.write_text(now)
    if spilled:
        sys.exit(f"kernels spill registers: {spilled}")
    before = TABLE.read_text()
    if other := {kernel for kernel, _ in found} ^ recorded():
        sys.exit(f"{TABLE.name} is of other kernels, --record writes it anew: {sorted(other)}")
    if now != before:  # of another compiler, or of a kernel that has changed
        print(f"{TABLE.name} has other numbers; --record writes these:\n{now}")
    print(f"{len(found)} kernels, no spills")


if __name__ == "__main__":
    main()
