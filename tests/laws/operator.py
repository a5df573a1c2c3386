# SPDX-License-Identifier: MIT
"""What the laws know of an operator: one row of the table in `table.py`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import PartitionSpec


class Case(Protocol):
    """A problem: options of the operator, and the sizes of its arrays. `str(case)` is its name."""

    def arrays(self, dtype: str, seed: int = 0) -> tuple:
        """Random arrays, one for each argument; None for an argument that is absent."""

    def cotangent(self, dtype: str, seed: int = 1) -> np.ndarray:
        """A random array of the result's shape."""

    def function(self, implementation: str | None = None) -> Callable:
        """The operator with the options of this case, as a function of the arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spot:
    """One sample: the indices of the elements that the position of the sample reaches."""

    case: Case
    element: tuple[int, ...]  # The element of `displaced` that moves the sample along one axis.
    reached: dict[str, tuple]  # Result or gradient -> its elements that a NaN there makes NaN.
    prepare: Callable = lambda arrays: arrays  # Moves the sample inside the image.

    def __str__(self) -> str:
        return f"{self.case}-axis{self.element[-1]}"


@dataclasses.dataclass(frozen=True, eq=False)
class Free:
    """A call in which all sizes that can be free are free."""

    function: Callable[[str], Callable]  # `function(implementation)`, a function of the arrays.
    shapes: Callable[..., tuple]  # The shapes of the arrays, for sizes by name.
    sizes: tuple[dict[str, int], ...]  # Sizes to run with.


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """Arrays that are split over devices so that nothing is sent but sums of gradients."""

    name: str
    case: Case
    split: dict[str, PartitionSpec]  # Argument -> how the argument is split.
    result: PartitionSpec  # How `y` is split.
    summed: tuple[str, ...] = ()  # Arguments whose gradients are sums over the devices.

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A row of the table.

    Arrays are always a tuple with one entry for each argument, None for an argument that is absent.
    """

    name: str  # The name of the primitive.
    call: Callable  # The public function.
    arguments: tuple[str, ...]
    displaced: str  # The argument that says where samples lie.
    constant: tuple[str, ...]  # Arguments whose derivative is zero by definition.
    reference: Callable[[Case], Callable]  # Plain `jax.numpy`, which JAX differentiates.
    loops: Callable[..., np.ndarray]  # `loops(case, *arrays)`: NumPy, one element at a time.

    # The cases of each law. Compiling plain JAX is slow: its cases are one of each kind of geometry,
    # since they judge the rules alone.
    cases: tuple[Case, ...]
    float32_cases: tuple[Case, ...]
    xla_cases: tuple[Case, ...]
    difference_cases: tuple[Case, ...]
    half_cases: tuple[Case, ...]
    loop_cases: tuple[Case, ...]
    small: Case  # For transformations; every argument is present.
    tiny: Case  # For second derivatives of every element; every argument is present.
    busy: Case  # Large enough for several threads.
    shared: Case  # Its `x` has 8 MiB in float32, and its other arrays are small.
    crowded: Case  # Sums of a thousand terms and more, once `crowd` has moved its samples.
    crowd: Callable[[tuple], tuple]  # Moves all samples of an image of `crowded` to one place.

    half: Callable[[tuple, str], tuple]  # Narrows arrays to a 16-bit type, as users do.
    wide: tuple[str, ...]  # Arguments that are read in float32 even if they have 16 bits.
    smooth: Callable[[tuple], tuple]  # Moves arrays away from the corners of the function.
    mapped: tuple[str, ...]  # Sets of arguments to map by `vmap`, the set of all arguments last.
    spots: tuple[Spot, ...]  # Samples whose positions become NaN, infinite and huge.

    good: dict[str, Any]  # Arguments of `call` that fit.
    wrong: dict[str, tuple]  # An argument that does not fit -> its value, the message.
    attributes: dict[str, Any]  # Attributes of a native call that fit `good`.
    refused: dict[str, tuple]  # Mistake -> target, operands, results, attributes, the message.

    batched: tuple[str, ...]  # Arguments whose first axis has the size given to `resized`.
    resized: Callable[[int], Case]
    free: tuple[Free, ...]
    spreads: tuple[Spread, ...]
    whole: dict[str, PartitionSpec]  # Argument -> a split of an axis that samples cross.

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def moving(self) -> tuple[int, ...]:
        """Indices of the arguments that have derivatives."""
        return tuple(i for i, name in enumerate(self.arguments) if name not in self.constant)

    def differentiable(self, arrays: Iterable) -> tuple:
        """The arrays that have derivatives."""
        arrays = tuple(arrays)
        return tuple(arrays[i] for i in self.moving if i < len(arrays))

    def of_differentiable(self, f: Callable, arrays: Iterable) -> Callable:
        """`f` as a function of the arrays that have derivatives, the others fixed."""
        arrays = tuple(arrays)

        def g(*values):
            named = dict(zip(self.moving, values, strict=False))
            return f(*(named.get(i, array) for i, array in enumerate(arrays)))

        return g

    def derivatives(self, f: Callable) -> Callable:
        """A function of arrays, tangents and a cotangent: the value, its tangent and the gradients."""

        def value_tangent_gradients(arrays, dots, grad_y):
            g, values = self.of_differentiable(f, arrays), self.differentiable(arrays)
            y, vjp = jax.vjp(g, *values)
            return y, jax.jvp(g, values, self.differentiable(dots))[1], vjp(grad_y)

        return value_tangent_gradients

    def loss(self, case: Case, implementation: str | None = None) -> Callable:
        """A function of the arrays with all derivatives of second order."""
        weights = case.cotangent("float64")
        f = case.function(implementation)
        return lambda *arrays: jax.numpy.vdot(jax.numpy.sin(f(*arrays)), weights)


# Largest difference that rounding explains, relative to the largest value: the sums have at most
# a few thousand terms.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}


def assert_close(
    actual, expected, tolerance: float | str = "float64", floor: float = 1e-30
) -> None:
    """Compares all arrays; the error is relative to the largest element, or to `floor`."""
    tolerance = TOLERANCE.get(tolerance, tolerance)
    leaves, structure = jax.tree.flatten_with_path(actual)
    assert structure == jax.tree.structure(expected)
    for (path, a), e in zip(leaves, jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.shape == e.shape and a.dtype == e.dtype, name
        scale = max(floor, np.max(np.abs(e), initial=0))
        error = np.max(np.abs(np.asarray(a) - np.asarray(e)), initial=0) / scale
        assert error <= tolerance, f"{name}: {error}"
