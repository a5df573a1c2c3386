# SPDX-License-Identifier: MIT
"""Which boxes of two programs are the same."""

import numpy as np


def same(boxes, scores, other_boxes, other_scores) -> np.ndarray:
    """`[D, E]`: intersection over union above 0.99, scores equal to 1e-3."""
    boxes, other_boxes = np.asarray(boxes)[:, None], np.asarray(other_boxes)[None]
    corner = np.maximum(boxes[..., :2], other_boxes[..., :2])
    common = np.prod(
        np.clip(np.minimum(boxes[..., 2:], other_boxes[..., 2:]) - corner, 0, None), -1
    )
    areas = [np.prod(array[..., 2:] - array[..., :2], -1) for array in (boxes, other_boxes)]
    close = np.abs(np.asarray(scores)[:, None] - np.asarray(other_scores)[None]) < 1e-3
    return (common > 0.99 * (sum(areas) - common)) & close
