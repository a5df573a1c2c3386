# SPDX-License-Identifier: MIT
"""The three primitives of an operator, and the rules that are the same for every operator.

    forward    (*operands)             -> y
    jvp        (*primals, *tangents)   -> the tangent of y, linear in the tangents
    backward   (*primals, grad_y)      -> cotangents, linear in grad_y: the transpose of `jvp`

The primals are the first operands, those that derivatives depend on. A parameter `wrt` names the
operands that derivatives are taken for: others cost nothing. The derivatives of `jvp` and `backward`
in the primals are second order, and come from the reference.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive

from jax_dcn._src.operator import extension


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The names of the arrays that a primitive takes and returns.

    Tangents are called as what they are tangents of, and cotangents likewise.
    """

    operands: tuple[str, ...]
    results: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """The names of an operator's operands, and how many of the first are its primals."""

    operands: tuple[str, ...]
    primals: int

    def arrays(self, kind: str, wrt: Sequence[str] = ()) -> Arrays:
        """Those of the primitive of this kind."""
        primals = self.operands[: self.primals]
        if kind == "forward":
            return Arrays(self.operands, ("y",))
        if kind == "jvp":
            return Arrays((*primals, *wrt), ("y",))
        return Arrays((*primals, "y"), tuple(wrt))


@dataclasses.dataclass(frozen=True)
class Functions:
    """What the three primitives compute; an implementation."""

    forward: Callable
    jvp: Callable
    backward: Callable

    @classmethod
    def of_kinds(cls, f: Callable) -> "Functions":
        """`f(kind, *operands, **params)` for each kind."""
        return cls(*(functools.partial(f, field.name) for field in dataclasses.fields(cls)))


def calls(signature: Signature, types: Callable, call: Callable) -> Functions:
    """The functions that are one call each: `call(kind, types of results, operands, geometry, wrt)`."""

    def f(kind, *operands, geometry, wrt=None, **_):
        primals = map(jax.typeof, operands[: signature.primals])
        named = types(*primals, geometry=geometry)
        results = [named[name] for name in signature.arrays(kind, wrt or ()).results]
        return call(kind, results, operands, geometry, wrt)

    return Functions.of_kinds(f)


class Operator:
    """Defines the primitives of the operator `name`: `forward_p`, `jvp_p` and `backward_p`.

    Args:
      signature: The operands.
      types: `(*primals, geometry)` to the aval of every operand and of `y`, by name.
      reference: The functions in `jax.numpy`; what every platform can run.
      native: The functions by kernels of ours, for each platform that has them.
      batching_rule: `(primitive, arrays, operands, axes, **params)` to `(results, axes)`.
      axes: `(arrays, *avals, geometry)` to the names of the axes to split along.
    """

    def __init__(
        self,
        name: str,
        signature: Signature,
        *,
        types: Callable,
        reference: Functions,
        native: Mapping[str, Functions],
        batching_rule: Callable,
        axes: Callable[..., extension.Axes],
    ):
        self._signature, self._types, self._reference = signature, types, reference

        def define(name: str, kind: str, jvp: Callable, transpose: Callable | None) -> Primitive:
            def arrays(params: Mapping[str, Any]) -> Arrays:
                return signature.arrays(kind, params.get("wrt", ()))

            def batch(operands, axes, **params):
                return batching_rule(primitive, arrays(params), operands, axes, **params)

            primitive = extension.define_primitive(
                name,
                abstract_eval=lambda *avals, **params: self._results(arrays(params), avals, params),
                reference=getattr(reference, kind),
                native={platform: getattr(f, kind) for platform, f in native.items()},
                jvp=jvp,
                transpose=transpose,
                batching_rule=batch,
                axes=lambda *avals, **params: axes(
                    arrays(params), *avals, geometry=params["geometry"]
                ),
            )
            return primitive

        self.forward_p = define(name, "forward", self._jvp, None)
        self.jvp_p = define(f"{name}_jvp", "jvp", self._jvp_jvp, self._jvp_transpose)
        self.backward_p = define(
            f"{name}_backward", "backward", self._backward_jvp, self._backward_transpose
        )

    def _results(self, arrays: Arrays, avals: Sequence[Any], params: Mapping[str, Any]) -> tuple:
        types = self._types(*avals[: self._signature.primals], geometry=params["geometry"])
        return tuple(types[name].update(weak_type=False) for name in arrays.results)

    # `jvp` is one linear map of all the tangents, whose transpose is one call of `backward`;
    # transposing that gives `jvp` again.

    def _jvp(self, operands, tangents, **params):
        y = self.forward_p.bind(*operands, **params)
        wrt, dots = _nonzero(self._signature.operands, tangents)
        primals = operands[: self._signature.primals]
        return y, self.jvp_p.bind(*primals, *dots, wrt=wrt, **params)

    def _jvp_jvp(self, operands, tangents, **params):
        return self._jvp_of_linear(self.jvp_p, self._reference.jvp, operands, tangents, **params)

    def _backward_jvp(self, operands, tangents, **params):
        f = self._reference.backward
        return self._jvp_of_linear(self.backward_p, f, operands, tangents, **params)

    def _jvp_of_linear(
        self, primitive, reference, operands, tangents, *, implementation, **params
    ) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
        """JVP of a primitive that is linear in its operands after the primals."""
        primals = operands[: self._signature.primals]
        bind = functools.partial(primitive.bind, implementation=implementation, **params)
        results = bind(*operands)
        indices, dots = _nonzero(range(len(operands)), tangents)
        if min(indices) >= len(primals):
            linear = map(extension.instantiate_zeros, tangents[len(primals) :])
            return results, bind(*primals, *linear)

        def f(*active):
            values = dict(enumerate(operands)) | dict(zip(indices, active, strict=True))
            return extension.as_tuple(reference(*values.values(), **params))

        return results, jax.jvp(f, tuple(operands[i] for i in indices), tuple(dots))[1]

    def _jvp_transpose(self, cotangents, *operands, wrt, **params):
        """One call of the fused backward pass for the cotangents that are asked for."""
        (grad_y,) = cotangents
        count = self._signature.primals
        primals, dots = operands[:count], operands[count:]
        if type(grad_y) is extension.Zero:
            return [None] * count + [extension.Zero(dot.aval) for dot in dots]
        unknown = map(extension.is_undefined_primal, dots)
        asked = tuple(name for name, is_asked in zip(wrt, unknown, strict=True) if is_asked)
        grads = self.backward_p.bind(*primals, grad_y, wrt=asked, **params)
        by_name = dict(zip(asked, grads, strict=True))
        return [None] * count + [by_name.get(name) for name in wrt]

    def _backward_transpose(self, cotangents, *operands, wrt, **params):
        """The tangent again, along the cotangents that there are."""
        *primals, grad_y = operands
        wrt, dots = _nonzero(wrt, cotangents)
        if not dots:
            return [None] * len(primals) + [extension.Zero(grad_y.aval)]
        return [None] * len(primals) + list(self.jvp_p.bind(*primals, *dots, wrt=wrt, **params))


def _nonzero(names: Iterable, tangents: Iterable) -> tuple[tuple, list]:
    """The names of the operands that have a tangent, and these tangents."""
    pairs = [(n, t) for n, t in zip(names, tangents, strict=True) if type(t) is not extension.Zero]
    return tuple(name for name, _ in pairs), [tangent for _, tangent in pairs]
