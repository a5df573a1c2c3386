# SPDX-License-Identifier: MIT
"""Average precision as pycocotools defines it."""

import collections
import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Entry = dict[str, Any]
"""A dictionary of COCO's format: an annotation, or a result."""

_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


class Measured(NamedTuple):
    """How good detections are; -1 where there is nothing to find."""

    summary: dict[str, float]
    """Average precisions by COCO's names; the names for masks begin with "mask_"."""
    classes: dict[str, dict[str, float]]
    """"AP", and "mask_AP", of every class."""


def measure(content: Entry, results: Sequence[Entry], *, masks: bool = False) -> Measured:
    """The average precisions of detections.

    Args:
      content: A data set in COCO's format.
      results: Detections in COCO's format of results.
      masks: Whether to measure masks as well.
    """
    summary: dict[str, float] = {}
    names = _names(content["categories"])
    classes: dict[str, dict[str, float]] = {name: {} for name in names.values()}
    for prefix, kind in (("", "bbox"), ("mask_", "segm"))[: 1 + masks]:
        evaluation = _evaluate(content, results, kind)
        summary |= {prefix + name: float(evaluation.stats[i]) for i, name in enumerate(_NAMES)}
        # [overlaps, recalls, classes, areas, most detections]: any area, 100 detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for column, category in enumerate(evaluation.params.catIds):
            classes[names[category]][f"{prefix}AP"] = _mean(precision[:, :, column])
    return Measured(summary, classes)


def _names(categories: Sequence[Entry]) -> dict[int, str]:
    """The names of categories by id, no two of them the same."""
    count = collections.Counter(entry["name"] for entry in categories)
    return {
        entry["id"]: entry["name"] + f" ({entry['id']})" * (count[entry["name"]] > 1)
        for entry in categories
    }


def average_precision(
    content: Entry, results: Sequence[Entry], wanted: Callable[[Entry], bool], kind: str = "bbox"
) -> float:
    """The average precision on the annotations that are `wanted`; others are neither right nor wrong.

    Args:
      content: A data set in COCO's format.
      results: Detections in COCO's format of results.
      wanted: Whether an annotation counts.
      kind: "bbox" for boxes, "segm" for masks.
    """
    # pycocotools leaves annotations out by their area alone.
    marked = [entry | {"area": 0 if wanted(entry) else 2} for entry in content["annotations"]]
    evaluation = _evaluate(content | {"annotations": marked}, results, kind, largest=1)
    return _mean(evaluation.eval["precision"][:, :, :, 0, -1])


def _evaluate(
    content: Entry, results: Sequence[Entry], kind: str, largest: float | None = None
) -> COCOeval:
    """Compares. `largest` is the largest area that counts; every detection gets this area."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports as it goes.
        truth = _index(content, _completed(content["annotations"]))
        found = truth.loadRes(_given(results, kind)) if results else _index(content, [])
        evaluation = COCOeval(truth, found, kind)
        if largest is not None:
            for entry in found.dataset["annotations"]:
                entry["area"] = largest
            evaluation.params.areaRng = [[0, largest]]
            evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        if largest is None:
            evaluation.summarize()
    return evaluation


def _index(content: Entry, annotations: list[Entry]) -> COCO:
    indexed = COCO()
    indexed.dataset = content | {"annotations": annotations}
    indexed.createIndex()
    return indexed


def _completed(annotations: Sequence[Entry]) -> list[Entry]:
    """Annotations with what pycocotools cannot do without; an object of the id 0 would be missed."""
    return [
        {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]} | entry | {"id": place}
        for place, entry in enumerate(annotations, start=1)
    ]


def _given(results: Sequence[Entry], kind: str) -> list[Entry]:
    """Copies of results, to which pycocotools adds areas: of the box, if there is one."""
    hidden = "bbox" if kind == "segm" else None
    return [{name: x for name, x in entry.items() if name != hidden} for entry in results]


def _mean(precision: np.ndarray) -> float:
    real = precision[precision > -1]
    return float(real.mean()) if real.size else -1.0
