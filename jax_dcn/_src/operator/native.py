# SPDX-License-Identifier: MIT
"""Compiled kernels as implementations of a primitive: their calls, and when they can run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.arguments import DTYPES
from jax_dcn._src.operator import libraries
from jax_dcn._src.operator.signature import Arrays
from jax_dcn._src.operator.sizes import is_free


@dataclasses.dataclass(frozen=True)
class Native:
    """The kernels of one platform that compute a primitive.

    Attributes:
      platform: The platform of the kernels, `"cpu"` or `"cuda"`.
      target: The XLA target of the kernels; the library of the platform holds it, or has no kernels
        for this primitive.
      compute: `(*operands, **params)` to a result, or to a tuple of results.
      refuses: `(*operands, **params)` to the reason why the kernels cannot take these operands;
        `None` where they can. Only shapes and dtypes of operands are known.
    """

    platform: str
    target: str
    compute: Callable[..., Any]
    refuses: Callable[..., str | None] | None = None

    def why_not(self, *operands: Any, **params: Any) -> str | None:
        """Why the kernels cannot run on these operands; `None` where they can.

        Without operands: why the kernels can run on no operands of this installation.
        """
        reason = libraries.why_not(self.platform, self.target)
        if reason is not None or not operands:
            return reason
        dtype = np.dtype(operands[0].dtype).name
        if dtype not in DTYPES:
            return f"the native kernels compute in {', '.join(DTYPES)}, not in {dtype}"
        if self.platform == "cuda" and is_free(*operands[0].shape):
            return "on cuda the batch and the images must be of known size"
        return self.refuses(*operands, **params) if self.refuses is not None else None


def xla_call(
    target: str,
    arrays: Callable[..., Arrays],
    types: Callable[..., Mapping[str, Any]],
    attributes: Callable[..., dict[str, Any]],
) -> Callable[..., Sequence[jax.Array]]:
    """The function `(*operands, **params)` that calls one kernel, for `Native.compute`.

    Args:
      target: The XLA target of the kernel.
      arrays, types: As in `define_primitive`: the names of the arrays, and their types.
      attributes: `(**params)` to the attributes of the call.
    """

    def call(*operands: jax.Array, **params: Any) -> Sequence[jax.Array]:
        named = arrays(**params)
        primals = map(jax.typeof, operands[: named.primals])
        by_name = types(*primals, geometry=params["geometry"])
        results = [by_name[name] for name in named.results]
        return jax.ffi.ffi_call(target, results)(*operands, **attributes(**params))

    return call
