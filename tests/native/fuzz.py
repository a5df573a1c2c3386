# SPDX-License-Identifier: MIT
"""Calls the XLA handlers with random arguments, many of them wrong, under address and undefined-
behaviour sanitizers: every call must be refused, or computed. `python tests/native/fuzz.py --calls 10000`
"""

import argparse
import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = (
    "deform_conv2d/handlers.cc",
    "deform_conv2d/kernels.cc",
    "runtime/executor.cc",
    "runtime/instruction_set.cc",
)
HANDLERS = {
    "forward": "DeformConv2dForward",
    "jvp": "DeformConv2dJvp",
    "backward": "DeformConv2dBackward",
}
SANITIZERS = ("libasan.so", "libubsan.so")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def build(library: pathlib.Path) -> None:
    """Compiles the handlers into a library of their own, without Python."""
    flags = "-std=gnu++17 -O1 -g -shared -fPIC -Wno-psabi -fsanitize=address,undefined"
    checks = "-fsanitize=float-cast-overflow -fno-sanitize-recover=all -DJAX_DCN_ISA=baseline"
    include = [f"-I{ROOT}", "-isystem", jax.ffi.include_dir()]
    sources = [str(ROOT / "cpu" / source) for source in SOURCES]
    command = [_compiler(), *flags.split(), *checks.split(), *include, *sources, "-o", library]
    subprocess.run(command, check=True)


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


class Call:
    """Operands, results and attributes that fit together, until `spoil` changes one of them."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        self.kind = str(random.choice(list(HANDLERS)))
        self.dtype = str(random.choice(DTYPES))
        self.wide = "float64" if self.dtype == "float64" else "float32"
        feature_groups, offset_groups = self._draw(1, 3), self._draw(1, 3)
        strides, dilation = [self._draw(1, 3) for _ in "hw"], [self._draw(1, 2) for _ in "hw"]
        padding = [[self._draw(0, 3) for _ in range(2)] for _ in "hw"]
        kernel = [self._draw(1, 3) for _ in "hw"]
        image = [self._draw(d * (k - 1) + 1, 9) for d, k in zip(dilation, kernel, strict=True)]
        output = [
            (size + sum(pads) - d * (k - 1) - 1) // s + 1
            for size, pads, d, k, s in zip(image, padding, dilation, kernel, strides, strict=True)
        ]
        batch, taps = self._draw(0, 3), kernel[0] * kernel[1]
        group_channels = offset_groups * self._draw(1, 12)
        features = feature_groups * self._draw(1, 20)
        samples = (batch, *output, offset_groups)
        self.shapes = {
            "x": (batch, *image, feature_groups * group_channels),
            "kernel": (*kernel, group_channels, features),
            "offset": (*samples, taps, 2),
            "mask": (*samples, taps * self._draw(0, 1)),
            "bias": (features,),
            "y": (batch, *output, features),
        }
        self.attributes = dict(
            strides=np.array(strides),
            padding=np.array(padding).ravel(),
            kernel_dilation=np.array(dilation),
            feature_group_count=np.int64(feature_groups),
            legacy_boundary=bool(self._draw(0, 1)),
        )
        wrt = [i for i in range(5) if self._draw(0, 1)] or [0]
        names = [list(self.shapes)[i] for i in wrt]
        if self.kind != "forward":
            self.attributes["wrt"] = np.array(wrt)
        linear = {"forward": ["bias"], "jvp": names, "backward": ["y"]}[self.kind]
        self.operands = [self._array(n) for n in ("x", "kernel", "offset", "mask", *linear)]
        results = names if self.kind == "backward" else ["y"]
        self.results = [(self.shapes[n], self._dtype(n)) for n in results]

    def _draw(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def _dtype(self, name: str) -> str:
        return self.wide if name in ("offset", "mask") else self.dtype

    def _array(self, name: str) -> np.ndarray:
        dtype, shape = jax.numpy.dtype(self._dtype(name)), self.shapes[name]
        if self._draw(0, 2):
            return self.random.normal(scale=3, size=shape).astype(dtype)
        # Any bits are a number, or are not one.
        bits = self.random.bytes(int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(bits, dtype).reshape(shape)

    def spoil(self) -> None:
        """Makes one thing wrong, or at least different."""
        kind = self._draw(0, 4)
        index = self._draw(0, len(self.operands) - 1)
        operand = self.operands[index]  # of any bits: converting them may overflow, silently
        axis = self._draw(0, operand.ndim - 1)
        if kind == 0:
            self.operands[index] = np.take(operand, range(operand.shape[axis] // 2), axis)
        elif kind == 1:
            self.operands[index] = np.concatenate([operand, operand], axis)
        elif kind == 2:
            with np.errstate(all="ignore"):
                self.operands[index] = operand.astype(str(self.random.choice([*DTYPES, "int32"])))
        elif kind == 3:
            name = str(self.random.choice(["strides", "padding", "kernel_dilation"]))
            values = self.random.choice([-(2**63), -1, 0, 1, 2, 5, 2**31, 2**62], self._draw(0, 5))
            self.attributes[name] = values
        else:
            self.attributes["feature_group_count"] = np.int64(self._draw(-2, 7))

    def run(self) -> bool:
        """Whether the handler computed, rather than refused."""
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.results]
        call = jax.ffi.ffi_call(f"fuzz_{self.kind}", results)
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
    handlers = ctypes.CDLL(library)
    for kind, name in HANDLERS.items():
        capsule = jax.ffi.pycapsule(getattr(handlers, name))
        jax.ffi.register_ffi_target(f"fuzz_{kind}", capsule, platform="cpu")
    computed = 0
    for i in range(calls):
        call = Call(np.random.default_rng((seed, i)))
        if wrong := i % 2:
            call.spoil()
        done = call.run()
        assert done or wrong, f"call {i} of seed {seed} was refused"
        computed += done
    print(f"{calls} calls: {computed} computed, {calls - computed} refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
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
