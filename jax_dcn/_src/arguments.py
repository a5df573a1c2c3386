# SPDX-License-Identifier: MIT
"""Checks of single arguments: an error names the argument, what is expected and what came."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that every operator takes."""

LIMIT = 2**31
"""Positions and sizes along an axis are less, so that they fit into 32 bits."""

F = TypeVar("F", bound=Callable[..., Any])


def renamed(names: Mapping[str, str], reasons: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Decorates a function whose arguments have other names in other libraries.

    Args:
      names: Names that the function does not have, and the names to write instead. A name is left
        out where the function does not have the name to write instead.
      reasons: Names of other libraries without a counterpart, and why there is none.
    """

    def decorate(f: F) -> F:
        known = inspect.signature(f).parameters
        unknown = {name: f"write {new}= instead" for name, new in names.items() if new in known}
        unknown |= reasons or {}

        @functools.wraps(f)
        def checked(*arguments: Any, **options: Any) -> Any:
            for name in options:
                if name in unknown:
                    raise TypeError(f"there is no argument {name}=: {unknown[name]}.")
            return f(*arguments, **options)

        return checked  # type: ignore[return-value]

    return decorate


def renamed_options(
    names: Mapping[str, str], reasons: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Decorates a class as `renamed` decorates its `__init__`."""

    def decorate(cls: F) -> F:
        setattr(cls, "__init__", renamed(names, reasons)(cls.__init__))  # noqa: B010
        return cls

    return decorate


def array(name: str, value: Any, axes: str) -> jax.Array:
    """The argument `name` as an array of floating point; `axes` says which axes are expected."""
    converted = any_array(name, value, axes)
    if converted.dtype.name not in DTYPES:
        raise ValueError(f"{name} must have a dtype of {DTYPES}, got {converted.dtype.name}.")
    if converted.dtype != jax.dtypes.canonicalize_dtype(converted.dtype):
        raise ValueError(
            f"{name} must not be float64 while jax_enable_x64 is off: set jax_enable_x64, or pass "
            f'{name}.astype("float32").'
        )
    return converted


def any_array(name: str, value: Any, axes: str) -> jax.Array:
    """The argument `name` as an array of any dtype."""
    reason = None
    try:
        if value is not None:
            return jnp.asarray(value)
    except jax.errors.JaxRuntimeError:
        raise  # which says nothing about the value, as when memory is short
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = error
    raise ValueError(f"{name} must be an array {axes}, got {_described(value)}.") from reason


def _described(value: Any) -> str:
    """A value for an error: of arrays that JAX does not take, not all elements."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    return repr(value)


def optional_array(name: str, value: Any, axes: str) -> jax.Array | None:
    """The argument `name` as an array of floating point, or `None` where it is absent."""
    return None if value is None else array(name, value, axes)


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The argument `name` as an integer from `least` to `most`."""
    if is_integer(value) and least <= value and (most is None or value <= most):
        return int(value)
    bounds = f">= {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} must be an integer {bounds}, got {value!r}.")


def positive(name: str, value: Any) -> int:
    """The argument `name` as a positive integer."""
    if is_integer(value) and value > 0:
        return int(value)
    raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def positive_pair(name: str, value: Any) -> tuple[int, int]:
    """The argument `name` as `(height, width)`, from a positive integer or a pair of them."""
    pair = (value, value) if is_integer(value) else value
    if not is_pair(pair) or not all(is_integer(v) and v > 0 for v in pair):
        raise ValueError(f"{name} must be a positive integer or a pair of them, got {value!r}.")
    if max(pair) >= LIMIT:
        raise ValueError(f"{name} must be less than 2**31, got {value!r}.")
    return int(pair[0]), int(pair[1])


def finite(name: str, value: Any) -> float:
    """The argument `name` as a finite number."""
    if not _is_finite(value):
        hint = " Options are Python numbers." if isinstance(value, jax.Array) else ""
        raise ValueError(f"{name} must be a finite number, got {value!r}.{hint}")
    return float(value)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond all floats.
        return False


def positive_number(name: str, value: Any) -> float:
    """The argument `name` as a positive finite number."""
    if finite(name, value) <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """The argument `name` as `True` or `False`."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """The argument `name`, one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")
    return value


def text(name: str, value: Any) -> str:
    """The argument `name`, a string."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {value!r}.")
    return value


def texts(name: str, value: Any) -> list[str]:
    """The argument `name` as a list of strings, from a string or several."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Collection) or not all(isinstance(v, str) for v in listed):
        raise ValueError(f"{name} must be a string or a sequence of strings, got {value!r}.")
    return list(listed)


def static(value: Any) -> Any:
    """An option of a layer as a value with a hash: sequences and arrays of NumPy become tuples."""
    listed = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return tuple(map(static, listed)) if isinstance(listed, list | tuple) else listed


def function(name: str, value: Any) -> Callable[..., Any]:
    """The argument `name`, a function."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {value!r}.")
    return value


def dtype(name: str, value: Any) -> np.dtype:
    """The argument `name` as a dtype that operators compute in."""
    try:
        found = None if value is None else jnp.dtype(value)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"{name} must be one of {DTYPES}, got {value!r}.")
    return found


def optional_dtype(name: str, value: Any) -> np.dtype | None:
    """The argument `name` as a dtype that operators compute in, or `None`."""
    return None if value is None else dtype(name, value)


def precision(value: Any) -> Any:
    """The argument `precision`, which `jax.lax` must take; by default, the precision in use now."""
    if value is None:
        return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    found = tuple(value) if isinstance(value, list) else value
    if not _is_precision(found):
        raise ValueError(f"precision must be None or as in jax.lax, got {value!r}.")
    return found


def _is_precision(value: Any) -> bool:
    try:
        return _multiplies(value)
    except (TypeError, ValueError):
        return False


@functools.cache
def _multiplies(value: Any) -> bool:
    matrix = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    jax.eval_shape(functools.partial(jax.lax.dot, precision=value), matrix, matrix)
    return True


def is_integer(value: object) -> bool:
    """Whether `value` is an integer, of Python or of NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_sequence(value: object) -> bool:
    """Whether `value` is a sequence of options, of Python or of NumPy."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_pair(value: Any) -> bool:
    """Whether `value` is a sequence of two elements."""
    return is_sequence(value) and len(value) == 2
