# SPDX-License-Identifier: MIT
"""Weights of detectors made from the names that mmdetection gives them."""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "detection"

# The variance of a kernel's values times its number of inputs, by a part of the name.
GAINS = {
    "conv_offset": 0.15,
    "lateral_convs": 0.2,
    "fpn_convs": 0.2,
    "rpn_reg": 0.05,
    "fc_reg": 0.05,
    "rpn_cls": 2.0,
    "fc_cls": 1.25,
}


def published_weights(*, modulated: bool) -> dict[str, np.ndarray]:
    """All arrays of Faster R-CNN R50-FPN with deformable convolutions in c3 to c5."""
    shapes = json.loads((FOLDER / "parameters.json").read_text())
    if not modulated:
        shapes = {
            name: [18, *shape[1:]] if "conv_offset" in name else shape
            for name, shape in shapes.items()
        }
    growth = 0.6 if modulated else 0.45
    return {name: weight(name, tuple(shape), growth) for name, shape in shapes.items()}


def weight(name: str, shape: tuple[int, ...], growth: float) -> np.ndarray:
    """The array `name`: `growth` is the size of what a residual block adds."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_mean"):
        values = 0.05 * noise
    elif name.endswith("running_var"):
        values = 1 + 0.2 * np.tanh(noise)
    elif name.endswith("bias"):
        values = bias(name, noise)
    elif len(shape) == 1:
        last = ".bn3." in name or ".downsample." in name
        values = (growth if last else 1) * (1 + 0.1 * noise)
    else:
        gain = next((gain for part, gain in GAINS.items() if part in name), 2.5)
        values = np.sqrt(gain / np.prod(shape[1:])) * noise
    return values.astype(np.float32)


def bias(name: str, noise: np.ndarray) -> np.ndarray:
    if "fc_cls" in name:  # The background, which is the last class, is the likeliest.
        return 0.1 * noise + 10 * (np.arange(len(noise)) == len(noise) - 1)
    return (0.3 if "conv_offset" in name else 0.02) * noise
