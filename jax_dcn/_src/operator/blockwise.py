# SPDX-License-Identifier: MIT
"""Maps a function over an axis in blocks, so that memory does not grow with the axis."""

from collections.abc import Callable
from typing import Any

import jax

from jax_dcn._src.operator.sizes import is_free

# Size of a block, at most: the backward pass holds about a dozen arrays of this size.
_BLOCK_BYTES = 8 * 2**20


def blockwise(f: Callable[..., jax.Array], arrays: tuple[Any, ...], item_bytes: Any) -> jax.Array:
    """Maps `f` over the leading axis of `arrays`, in blocks of items.

    Args:
      f: Maps one item of each array to one item of the result.
      arrays: Arrays with one leading axis.
      item_bytes: Memory that one item takes.
    """
    items, block = arrays[0].shape[0], None
    # A free number of items is mapped one by one: blocks of a known size may not divide the number.
    if not is_free(items, item_bytes):
        block = max(1, _BLOCK_BYTES // max(1, item_bytes))
        if items <= block:
            return jax.vmap(f)(*arrays)
    # The backward pass recomputes each block, which bounds its memory, too.
    return jax.lax.map(jax.checkpoint(lambda item: f(*item)), arrays, batch_size=block)
