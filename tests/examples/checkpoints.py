# SPDX-License-Identifier: MIT
"""What is in the checkpoints of a run."""

import pathlib

import jax
import numpy as np
import orbax.checkpoint


def arrays_of(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: weights, their average, momentum."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        items = [
            checkpointer.restore((folder / "checkpoints" / str(step) / item).resolve())
            for item in ("weights", "training")
        ]
    leaves, _ = jax.tree_util.tree_flatten_with_path(items)
    return {jax.tree_util.keystr(path): np.asarray(array) for path, array in leaves}


def assert_same_arrays(folder: pathlib.Path, other: pathlib.Path, step: int):
    """Two runs have the same bits at a step."""
    arrays, others = arrays_of(folder, step), arrays_of(other, step)
    assert arrays.keys() == others.keys() and len(arrays) > 100
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name, strict=True)
