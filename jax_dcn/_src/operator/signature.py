# SPDX-License-Identifier: MIT
"""The names of the arrays that an operator's three primitives take and return.

    forward    (*operands)             -> y
    jvp        (*primals, *tangents)   -> the tangent of y, linear in the tangents
    backward   (*primals, grad_y)      -> cotangents, linear in grad_y: the transpose of jvp

The primals are the first operands: the ones that derivatives depend on. The parameter `wrt` names
the operands that derivatives are taken for.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The names of the arrays of one primitive.

    A tangent or cotangent has the name of its array: the tangent of `x` is called `x`.

    Attributes:
      operands: The arrays that the primitive takes.
      results: The arrays that the primitive returns.
      primals: How many of the first operands are primals.
    """

    operands: tuple[str, ...]
    results: tuple[str, ...]
    primals: int


@dataclasses.dataclass(frozen=True)
class Signature:
    """The operands of an operator; each method gives the arrays of one of its primitives.

    Attributes:
      operands: The names of the operands of the forward primitive.
      primals: How many of the first operands are primals.
    """

    operands: tuple[str, ...]
    primals: int

    def forward(self, **_: Any) -> Arrays:
        """The arrays of the operator itself."""
        return Arrays(self.operands, ("y",), self.primals)

    def jvp(self, *, wrt: tuple[str, ...], **_: Any) -> Arrays:
        """The arrays of the tangent."""
        return Arrays((*self.operands[: self.primals], *wrt), ("y",), self.primals)

    def backward(self, *, wrt: tuple[str, ...], **_: Any) -> Arrays:
        """The arrays of the backward pass."""
        return Arrays((*self.operands[: self.primals], "y"), wrt, self.primals)

    def indices(self, wrt: tuple[str, ...]) -> list[int]:
        """The positions in `operands` of the names in `wrt`: kernels read numbers, not names."""
        return [self.operands.index(name) for name in wrt]
