# SPDX-License-Identifier: MIT
"""Calls the CPU's XLA handlers with random arguments, many of them wrong, under address and undefined-
behaviour sanitizers. Every call must be refused or computed. `python tests/native/fuzz.py --calls 10000`

The folder of each operator beside this file draws the operator's problems.
"""

import argparse
import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from targets import OPERATORS, ROOT, SOURCE, capsules, definitions

SHARED_SOURCES = (
    ROOT / "cpu/library.cc",
    ROOT / "cpu/runtime/executor.cc",
    ROOT / "cpu/runtime/instruction_set.cc",
    SOURCE,
)
KINDS = ("forward", "jvp", "backward")
SANITIZERS = ("libasan.so", "libubsan.so")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def build(library: pathlib.Path) -> None:
    """Compiles the handlers into a library of their own, without Python."""
    flags = "-std=gnu++17 -O0 -g -shared -fPIC -Wno-psabi -fsanitize=address,undefined"
    checks = "-fsanitize=float-cast-overflow -fno-sanitize-recover=all -DJAX_DCN_ISA=baseline"
    include = [f"-I{ROOT}", "-isystem", jax.ffi.include_dir()]
    sources = [
        ROOT / "cpu" / operator / file
        for operator in OPERATORS
        for file in ("handlers.cc", "kernels.cc")
    ]
    command = [_compiler(), *flags.split(), *checks.split()]
    command += [*definitions("CpuLibrary", OPERATORS), *include]
    subprocess.run([*command, *SHARED_SOURCES, *sources, "-o", library], check=True)


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


class Call:
    """Operands, results and attributes that fit together, until `spoil` changes one of them."""

    def __init__(self, operator: str, random: np.random.Generator):
        self.random = random
        self.kind = str(random.choice(KINDS))
        self.dtype = str(random.choice(DTYPES))
        self.target = f"jax_dcn_{operator}_{self.kind}"
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
        self.results = [(problem.shapes[name], self._dtype(name)) for name in results]

    def _draw(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def _dtype(self, name: str) -> str:
        wide = "float64" if self.dtype == "float64" else "float32"
        return wide if name in self.problem.wide else self.dtype

    def _array(self, name: str) -> np.ndarray:
        dtype, shape = jax.numpy.dtype(self._dtype(name)), self.problem.shapes[name]
        if self._draw(0, 2):
            return self.random.normal(scale=3, size=shape).astype(dtype)
        # Random bits: any value, infinities and NaNs among them.
        bits = self.random.bytes(int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(bits, dtype).reshape(shape)

    def spoil(self) -> None:
        """Makes one thing wrong, or at least different."""
        kind = self._draw(0, 3)
        if kind == 3:
            return self._spoil_attribute(str(self.random.choice(list(self.attributes))))
        index = self._draw(0, len(self.operands) - 1)
        operand = self.operands[index]
        axis = self._draw(0, operand.ndim - 1)
        if kind == 0:
            operand = np.take(operand, range(operand.shape[axis] // 2), axis)
        elif kind == 1:
            operand = np.concatenate([operand, operand], axis)
        else:
            with np.errstate(all="ignore"):  # conversion of random bits may overflow
                operand = operand.astype(str(self.random.choice([*DTYPES, "int32"])))
        self.operands[index] = operand

    def _spoil_attribute(self, name: str) -> None:
        value = self.attributes[name]
        if isinstance(value, np.ndarray):
            values = [-(2**63), -1, 0, 1, 2, 5, 2**31, 2**62]
            self.attributes[name] = self.random.choice(values, self._draw(0, 5))
        elif isinstance(value, np.int64):
            self.attributes[name] = np.int64(self.random.choice([-2, -1, 0, 1, 2, 7, 2**31, 2**62]))
        elif isinstance(value, np.float64):
            self.attributes[name] = self.random.choice([np.nan, np.inf, -np.inf, 1e300, -1e-300])
        else:
            self.attributes[name] = not value

    def run(self) -> bool:
        """Whether the handler computed, rather than refused."""
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.results]
        call = jax.ffi.ffi_call(f"fuzz_{self.target}", results)
        try:
            jax.block_until_ready(call(*self.operands, **self.attributes))
        except jax.errors.JaxRuntimeError as error:
            assert "INVALID_ARGUMENT: jax_dcn" in str(error), error
            return False
        return True


def fuzz(library: str, calls: int, seed: int) -> None:
    """Runs in the sanitized process."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    for target, capsule in capsules(library).items():
        jax.ffi.register_ffi_target(f"fuzz_{target}", capsule, platform="cpu")
    for operator in OPERATORS:
        fuzz_operator(operator, calls, seed)


def fuzz_operator(operator: str, calls: int, seed: int) -> None:
    computed = 0
    for i in range(calls):
        call = Call(operator, np.random.default_rng((seed, i)))
        if wrong := i % 2:
            call.spoil()
        done = call.run()
        assert done or wrong, f"{operator}: call {i} of seed {seed} was refused"
        computed += done
    print(f"{operator}: {calls} calls: {computed} computed, {calls - computed} refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="random calls for each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        return fuzz(options.library, options.calls, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "handlers.so")
        build(library)
        command = [sys.executable, *sys.argv, "--library", str(library)]
        raise SystemExit(subprocess.run(command, env=environment()).returncode)


if __name__ == "__main__":
    main()
