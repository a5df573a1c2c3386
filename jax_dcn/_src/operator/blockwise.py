# SPDX-License-Identifier: MIT
"""Maps a function over an axis in blocks, so that memory does not grow with the axis."""

from collections.abc import Callable
from typing import Any

import jax
from jax import export

# Arrays of samples are made in blocks of at most this size: the backward pass holds about a dozen
# arrays of it.
_BLOCK_BYTES = 8 * 2**20


def blockwise(f: Callable[..., jax.Array], arrays: tuple[Any, ...], item_bytes: int) -> jax.Array:
    """Maps `f` over the leading axis, vectorised over as many items as fit into a block."""
    items = arrays[0].shape[0]
    block = max(1, _BLOCK_BYTES // max(1, item_bytes))
    if export.is_symbolic_dim(items):
        # Nobody knows whether all fit, nor whether blocks divide them: one by one.
        return jax.lax.map(jax.checkpoint(lambda item: f(*item)), arrays)
    if items <= block:
        return jax.vmap(f)(*arrays)
    # Recomputing a block in the backward pass is what keeps its memory bounded there, too.
    return jax.lax.map(jax.checkpoint(lambda item: f(*item)), arrays, batch_size=block)
