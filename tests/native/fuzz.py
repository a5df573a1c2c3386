# SPDX-License-Identifier: MIT
"""Calls the CPU's XLA handlers with random arguments, many of them wrong, under address and undefined-
behaviour sanitizers. Every call must be refused or computed.

    python tests/native/fuzz.py --calls 100000 --xla-calls 300

The program of fuzz.cc makes thousands of calls a second, and takes XLA's place. XLA itself, which compiles
each call, makes fifty: they show that both read a call alike.

The folder of each operator beside this file draws the operator's problems.
"""

import argparse
import collections
import dataclasses
import importlib
import itertools
import math
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np
from targets import OPERATORS, ROOT, SOURCE, UNDEFINED, capsules, definitions

SHARED_SOURCES = (
    ROOT / "cpu/library.cc",
    ROOT / "cpu/runtime/executor.cc",
    ROOT / "cpu/runtime/instruction_set.cc",
    ROOT / "cpu/runtime/memory.cc",
    SOURCE,
)
KINDS = ("forward", "jvp", "backward")
SANITIZERS = ("libasan.so", "libubsan.so")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def build(folder: pathlib.Path, optimize: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Compiles the handlers into a library of their own, without Python, and their host in C++."""
    library, program = folder / "handlers.so", folder / "fuzz"
    flags = f"-std=gnu++17 -O{optimize} -g -fPIC -pthread -Wno-psabi -fsanitize=address,undefined"
    # With little memory, small problems are divided like large ones.
    macros = ("-DJAX_DCN_ISA=baseline", "-DJAX_DCN_LITTLE_MEMORY")
    include = [f"-I{ROOT}", "-isystem", jax.ffi.include_dir()]
    command = [_compiler(), *flags.split(), *UNDEFINED, *macros]
    command += [*definitions("CpuLibrary", OPERATORS), *include]
    sources = [
        ROOT / "cpu" / operator / file
        for operator in OPERATORS
        for file in ("handlers.cc", "kernels.cc")
    ]
    subprocess.run([*command, "-shared", *SHARED_SOURCES, *sources, "-o", library], check=True)
    host = [ROOT / "tests/native/fuzz.cc", library, f"-Wl,-rpath,{folder}", "-o", program]
    subprocess.run([*command, *host], check=True)
    return library, program


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def environment() -> dict[str, str]:
    """The sanitizers must be loaded before Python, and not mind what Python leaks."""
    paths = [
        subprocess.check_output([_compiler(), f"-print-file-name={name}"], text=True).strip()
        for name in SANITIZERS
    ]
    options = "detect_leaks=0:alloc_dealloc_mismatch=0"
    return os.environ | {"LD_PRELOAD": ":".join(paths), "ASAN_OPTIONS": options}


Draw = Callable[[int, int], int]  # a random integer from the first to the last


@dataclasses.dataclass
class Problem:
    """The contract of an operator's calls, for arguments that fit together."""

    shapes: dict[str, tuple[int, ...]]  # the operands of the forward call in order, then the result
    primals: tuple[str, ...]  # the first operands, which every call has
    differentiable: tuple[str, ...]  # operands that may be in `wrt`
    wide: tuple[str, ...]  # operands of the type of coordinates and sums
    attributes: dict[str, object]


@dataclasses.dataclass
class Array:
    """The type of an operand or a result."""

    dtype: str
    shape: tuple[int, ...]


class Call:
    """Operands, results and attributes that fit together, unless the call is `wrong`."""

    def __init__(self, operator: str, seed: int, wrong: bool):
        self.random = random.Random(seed)
        self.kind, self.dtype = self.random.choice(KINDS), self.random.choice(DTYPES)
        self.target, self.wrong = f"jax_dcn_{operator}_{self.kind}", wrong
        problem = importlib.import_module(f"{operator}.problems").draw_problem(self._draw)
        *operands, result = problem.shapes
        self.problem, self.attributes = problem, dict(problem.attributes)
        wrt = [name for name in problem.differentiable if self._draw(0, 1)] or ["x"]
        if self.kind != "forward":
            self.attributes["wrt"] = np.array([operands.index(name) for name in wrt])
        rest = operands[len(problem.primals) :]
        linear = {"forward": rest, "jvp": wrt, "backward": [result]}[self.kind]
        self.operands = [self._array(name) for name in (*problem.primals, *linear)]
        results = wrt if self.kind == "backward" else [result]
        self.results = [self._array(name) for name in results]
        if wrong:
            self.random.choice(SPOILS)(self)

    def _draw(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def _array(self, name: str) -> Array:
        wide = "float64" if self.dtype == "float64" else "float32"
        dtype = wide if name in self.problem.wide else self.dtype
        return Array(dtype, tuple(map(int, self.problem.shapes[name])))

    def _any_array(self) -> Array:
        return self.random.choice([*self.operands, *self.results])

    def spoil_size(self) -> None:
        array = self._any_array()
        axis = self._draw(0, len(array.shape) - 1)
        size = array.shape[axis]
        size = self.random.choice([size // 2, 2 * size, size + 1, 0])
        array.shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])

    def spoil_rank(self) -> None:
        array = self._any_array()
        array.shape = array.shape[1:] if self._draw(0, 1) else (*array.shape, 1)

    def spoil_dtype(self) -> None:
        self._any_array().dtype = self.random.choice([*DTYPES, "int32", "bool"])

    def spoil_count(self) -> None:
        arrays = self.random.choice([self.operands, self.results])
        if self._draw(0, 1):
            arrays.append(dataclasses.replace(arrays[0]))
        elif len(arrays) > 1 or self.kind == "forward":
            arrays.pop()

    def spoil_attribute(self) -> None:
        name = self.random.choice(list(self.attributes))
        value = self.attributes[name]
        if isinstance(value, np.ndarray):
            values = [-(2**63), -1, 0, 1, 2, 5, 2**31, 2**62]
            changed = [self.random.choice(values) for _ in range(self._draw(0, 5))]
            self.attributes[name] = np.array(changed, np.int64)
        elif isinstance(value, np.int64):
            values = [-2, -1, 0, 1, 2, 7, 2**31, 2**62]
            self.attributes[name] = np.int64(self.random.choice(values))
        elif isinstance(value, np.float64):
            values = [math.nan, math.inf, -math.inf, 1e300, -1e-300]
            self.attributes[name] = np.float64(self.random.choice(values))
        else:
            self.attributes[name] = not value

    def spoil_attribute_type(self) -> None:
        name = self.random.choice(list(self.attributes))
        others = [np.int64(1), np.float64(0.5), True, np.array([1, 2]), None]
        other = self.random.choice(others)
        if other is None:
            del self.attributes[name]
        else:
            self.attributes[name] = other

    def line(self) -> str:
        """The call for fuzz.cc, which draws the values."""
        words = [not self.wrong, self.target]
        for arrays in (self.operands, self.results):
            words.append(len(arrays))
            for array in arrays:
                words += [array.dtype, len(array.shape), *array.shape]
        words.append(len(self.attributes))
        for name, value in self.attributes.items():
            words += [name, *_attribute(value)]
        return " ".join(str(int(w) if isinstance(w, bool) else w) for w in words)

    def run(self) -> bool:
        """Whether the handler, called by XLA, computed rather than refused."""
        values = np.random.default_rng(self._draw(0, 2**32))
        results = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in self.results]
        call = jax.ffi.ffi_call(f"fuzz_{self.target}", results)
        try:
            operands = [_values(array, values) for array in self.operands]
            jax.block_until_ready(call(*operands, **self.attributes))
        except jax.errors.JaxRuntimeError as error:
            assert "INVALID_ARGUMENT: jax_dcn" in str(error), error
            return False
        return True


SPOILS = (
    Call.spoil_size,
    Call.spoil_rank,
    Call.spoil_dtype,
    Call.spoil_count,
    Call.spoil_attribute,
    Call.spoil_attribute_type,
)


def _attribute(value: object) -> tuple:
    """The type of an attribute, whether it is an array, and its values, of a scalar the bits."""
    if isinstance(value, np.ndarray):
        return ("int64", 1, len(value), *value)
    if isinstance(value, np.float64):
        return ("float64", 0, 1, *struct.unpack("<q", struct.pack("<d", value)))
    return ("bool" if isinstance(value, bool) else "int64", 0, 1, int(value))


def _values(array: Array, values: np.random.Generator) -> np.ndarray:
    dtype = jax.numpy.dtype(array.dtype)
    if values.integers(3) or array.dtype == "bool":
        return values.normal(scale=3, size=array.shape).astype(dtype)
    # Random bits: any value, infinities and NaNs among them.
    bits = values.bytes(math.prod(array.shape) * dtype.itemsize)
    return np.frombuffer(bits, dtype).reshape(array.shape)


def drawn(calls: int, seed: int) -> Iterator[Call]:
    """Calls of every operator in turn, every other call wrong."""
    operators = itertools.cycle(OPERATORS)
    for i, operator in zip(range(calls), operators, strict=False):
        yield Call(operator, seed << 32 | i, wrong=bool(i // len(OPERATORS) % 2))


def fuzz_in_cpp(program: pathlib.Path, calls: int, seed: int) -> None:
    with subprocess.Popen([program, str(seed)], stdin=subprocess.PIPE, text=True) as host:
        try:
            for call in drawn(calls, seed):
                print(call.line(), file=host.stdin)
            host.stdin.close()
        except BrokenPipeError:
            pass  # the host says why it ended
    if host.returncode:
        sys.exit(host.returncode)


def fuzz_in_xla(library: str, calls: int, seed: int) -> None:
    """Runs in the sanitized process."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    for target, capsule in capsules(library).items():
        jax.ffi.register_ffi_target(f"fuzz_{target}", capsule, platform="cpu")
    done = collections.Counter()
    for i, call in enumerate(drawn(calls, seed)):
        computed = call.run()
        assert computed or call.wrong, f"call {i} of seed {seed} was refused: {call.line()}"
        done[call.target, computed] += 1
    for target in capsules(library):
        computed, refused = done[target, True], done[target, False]
        print(
            f"{target}: {computed + refused} calls by XLA: {computed} computed, {refused} refused"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10000, help="by fuzz.cc, of all operators")
    parser.add_argument("--xla-calls", type=int, default=300, help="by XLA, of all operators")
    parser.add_argument("--optimize", type=int, default=0, help="the compiler's level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        return fuzz_in_xla(options.library, options.xla_calls, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        library, program = build(pathlib.Path(folder), options.optimize)
        fuzz_in_cpp(program, options.calls, options.seed)
        command = [sys.executable, *sys.argv, "--library", str(library)]
        subprocess.run(command, env=environment(), check=True)


if __name__ == "__main__":
    main()
