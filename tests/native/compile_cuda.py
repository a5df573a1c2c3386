# SPDX-License-Identifier: MIT
"""Compiles every `.cu` file for every GPU architecture, and tells what its kernels take of a GPU.

`python tests/native/compile_cuda.py` compares with the table in `cuda_resources.txt`. A kernel that
spills registers to memory is an error. With the compiler of the table, so is a kernel whose main loop
has grown, or of which fewer blocks fit on a multiprocessor. `--record` writes the table.

Instructions are counted in the listing of `cuobjdump`, of the CUDA toolkit or of the PyPI package
nvidia-cuda-cuobjdump (with nvidia-cuda-nvdisasm); without it, they are left out.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable

if __package__:
    from . import sass
else:
    import sass

ROOT = pathlib.Path(__file__).parents[2]
TABLE = pathlib.Path(__file__).with_name("cuda_resources.txt")
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
KINDS = (*sass.KINDS, sass.OTHER)

# Of a multiprocessor: 32-bit registers, and warps, fewer on some architectures.
REGISTERS, WARPS = 65536, {"86": 48, "89": 48, "120": 48}


def nvcc() -> str | None:
    return shutil.which(os.environ.get("CUDACXX", "nvcc"))


def cuobjdump() -> str | None:
    folder = pathlib.Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(folder))


def version() -> str:
    text = subprocess.check_output([nvcc(), "--version"], text=True)
    return re.search(r"release [\d.]+, V([\d.]+)", text)[1]


@dataclasses.dataclass
class Resources:
    """What a kernel takes of a GPU of one architecture.

    `smem` is the shared memory that the kernel declares, in bytes, by the assembler's name for it.
    `blocks` fit on a multiprocessor at once, by registers and warps. Of a kernel that is compiled
    for one or two blocks, no more: `ResidentBlocks` has counted its shared memory. `loop` counts the
    instructions of one round of the main loop by kind; it is empty if they were not counted.
    """

    registers: int
    smem: int
    stack: int
    spills: int
    blocks: int = 0
    loop: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def instructions(self) -> int:
        return sum(self.loop.values())


Found = dict[tuple[str, str], Resources]  # by kernel and architecture, such as "90"


def compiled(source: pathlib.Path) -> Found:
    """The kernels of a file."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(pathlib.Path(folder, "kernels.o"))
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        flags = ["-std=c++17", "-O3", "-Xptxas=-v", "-Werror=all-warnings", f"-I{ROOT}"]
        keep = ["--keep", "--keep-dir", folder]
        command = [nvcc(), *flags, *keep, *targets, "-c", str(source), "-o", output]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{source} does not compile:\n{done.stderr}")
        found = resources(done.stderr)
        bounds = {}
        for path in pathlib.Path(folder).glob("*.ptx"):
            bounds |= launch_bounds(path.read_text())
        for (kernel, architecture), used in found.items():
            used.blocks = blocks(used.registers, *bounds[kernel, architecture], architecture)
        if cuobjdump() is not None:
            command = [cuobjdump(), "-sass", output]
            add_loops(found, subprocess.check_output(command, text=True))
    return {
        (_readable(kernel), architecture): used for (kernel, architecture), used in found.items()
    }


def resources(text: str) -> Found:
    """Registers, shared memory, stack and spills in the assembler's report; mangled names."""
    found = {}
    for entry in re.split(r"Compiling entry function ", text)[1:]:
        name, architecture = re.match(r"'(\S+)' for 'sm_(\w+)'", entry).groups()
        number = lambda pattern, entry=entry: int((re.search(pattern, entry) or [0, 0])[1])
        found[name, architecture] = Resources(
            registers=number(r"Used (\d+) registers"),
            smem=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
    return found


def launch_bounds(ptx: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Threads of a block and least blocks of a multiprocessor, or 0, of each kernel; mangled names."""
    architecture = re.search(r"\.target sm_(\w+)", ptx)[1]
    found = {}
    for entry in re.split(r"\.entry ", ptx)[1:]:
        head = entry[: entry.index("{")]
        number = lambda pattern, head=head: int((re.search(pattern, head) or [0, 0])[1])
        bounds = number(r"\.maxntid\s+(\d+)"), number(r"\.minnctapersm\s+(\d+)")
        found[re.match(r"\w+", entry)[0], architecture] = bounds
    return found


def blocks(registers: int, threads: int, least: int, architecture: str) -> int:
    """Blocks of so many threads that fit on a multiprocessor at once."""
    warps = (threads or 256) // 32  # kernels without bounds are launched with 256 threads
    per_thread = -(-registers // 8) * 8
    fit = min(REGISTERS // (per_thread * 32 * warps), WARPS.get(architecture, 64) // warps)
    return min(fit, least) if least in (1, 2) else fit


def add_loops(found: Found, listing: str) -> None:
    """Counts the instructions of main loops in the listing of all architectures."""
    for part in re.split(r"\n\s*code for ", listing)[1:]:
        architecture = re.match(r"sm_(\w+)", part)[1]
        for kernel, code in sass.functions(part).items():
            found[kernel, architecture].loop = dict(sass.main_loop(code))


def _readable(mangled: str) -> str:
    """The kernel's name and template arguments."""
    name = subprocess.check_output(["c++filt", mangled], text=True).strip()
    name = re.sub(r"jax_dcn::|\(anonymous namespace\)::|^void ", "", name)
    return (name[: name.index("(")] if "(" in name else name).replace(" ", "")


COLUMNS = ("registers", "smem", "blocks", "instructions", *KINDS)


def table(found: Found) -> str:
    """A line for each kernel and architecture."""
    width = max(len(kernel) for kernel, _ in found)
    lines = [
        f"nvcc {version()}; instructions of a round of the main loop",
        f"{'kernel':{width}}  sm   " + " ".join(f"{name:>9}" for name in COLUMNS),
    ]
    for (kernel, architecture), used in sorted(
        found.items(), key=lambda f: (f[0][0], int(f[0][1]))
    ):
        numbers = [used.registers, used.smem, used.blocks, used.instructions]
        numbers += [used.loop.get(kind, 0) for kind in KINDS]
        lines.append(f"{kernel:{width}}  {architecture:4} " + " ".join(f"{n:9}" for n in numbers))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def read(text: str) -> tuple[str, dict[tuple[str, str], dict[str, int]]]:
    """The compiler of a table, and its numbers by kernel and architecture."""
    first, _, *lines = text.splitlines()
    rows = [line.split() for line in lines]
    numbers = {(r[0], r[1]): dict(zip(COLUMNS, map(int, r[2:]), strict=True)) for r in rows}
    return re.match(r"nvcc ([\d.]+)", first)[1], numbers


def recorded() -> set[str]:
    """The kernels in the table."""
    return {kernel for kernel, _ in read(TABLE.read_text())[1]}


def grown(found: Found, before: dict[tuple[str, str], dict[str, int]]) -> list[str]:
    """What is worse than in the table."""
    worse = []
    for key in sorted(found.keys() & before.keys()):
        used, old = found[key], before[key]
        if used.instructions > old["instructions"]:
            change = f"{old['instructions']} -> {used.instructions} instructions in the main loop"
            worse.append(f"{' on sm_'.join(key)}: {change}")
        if used.blocks < old["blocks"]:
            change = f"{old['blocks']} -> {used.blocks} blocks on a multiprocessor"
            worse.append(f"{' on sm_'.join(key)}: {change}")
    return worse


def compiled_all(sources: Iterable[pathlib.Path]) -> Found:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return {key: used for found in pool.map(compiled, sources) for key, used in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the table")
    record = parser.parse_args().record
    if record and cuobjdump() is None:
        sys.exit("there is no cuobjdump, without which instructions are not counted")
    found = compiled_all(sorted((ROOT / "cuda").rglob("*.cu")))
    if spilled := {kernel: used for kernel, used in found.items() if used.spills or used.stack}:
        sys.exit(f"kernels spill registers: {spilled}")
    if record:
        TABLE.write_text(table(found))
    compiler, before = read(TABLE.read_text())
    if other := {kernel for kernel, _ in found} ^ recorded():
        sys.exit(f"{TABLE.name} is of other kernels, --record writes it anew: {sorted(other)}")
    if version() != compiler:
        print(f"{TABLE.name} is of nvcc {compiler}, this is {version()}: nothing compared")
    elif worse := grown(found, before):
        sys.exit("kernels have grown, --record accepts that:\n" + "\n".join(worse))
    print(f"{len(found)} kernels, no spills")


if __name__ == "__main__":
    main()
