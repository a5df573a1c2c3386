# SPDX-License-Identifier: MIT
"""What is compared: each engine is a module with the functions `version` and `prepare`.

`prepare(case, mode, dtype, threads)` returns a `Task` whose arrays are in place, in the layout that
the engine likes best, and whose code is compiled. It raises `Unsupported` for what the engine lacks.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

# Deformable convolutions, then ordinary ones.
OURS = "jax_dcn"
PEERS = ("openvino", "onnxruntime", "ncnn")
CONVOLUTIONS = ("onednn_convolution", "xla_convolution")
ENGINES = (OURS, *PEERS, *CONVOLUTIONS)
# Only for problems where plain JAX comes close.
PLAIN_JAX = "jax_dcn_xla"


class Unsupported(Exception):
    """An engine cannot do this."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to time: `run` returns when it is done, `results` gives its arrays, channels last.

    The results are y and, in training, the gradients of x and kernel.
    """

    run: Callable[[], object]
    results: Callable[[], Sequence[np.ndarray]]


def only_forward(mode: str, dtype: str) -> None:
    if mode != "forward" or dtype != "float32":
        raise Unsupported("only the forward pass, in float32")


def symmetric_padding(case) -> tuple[int, int]:
    (top, bottom), (left, right) = case.geometry.padding
    if top != bottom or left != right:
        raise Unsupported("padding must be the same on both sides")
    return top, left


def channels_first(case) -> dict[str, np.ndarray]:
    """The arrays of a case as inference engines want them; a mask only where there is one.

    Axes are N C H W, O C kh kw, and for offset and mask N (G K 2) H W.
    """
    x, kernel, offset, mask, bias = case.arrays()
    arrays = {
        "x": x.transpose(0, 3, 1, 2),
        "kernel": kernel.transpose(3, 2, 0, 1),
        "offset": offset.reshape(*offset.shape[:3], -1).transpose(0, 3, 1, 2),
        "bias": bias,
    }
    if mask is not None:
        arrays["mask"] = mask.reshape(*mask.shape[:3], -1).transpose(0, 3, 1, 2)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def channels_last(y) -> np.ndarray:
    return np.asarray(y).transpose(0, 2, 3, 1)
