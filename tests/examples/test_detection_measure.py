# SPDX-License-Identifier: MIT
"""Average precisions equal pycocotools' on detections made by hand, and values worked out by hand."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from examples.detection.commands.evaluate import evaluate
from examples.detection.data.measure import average_precision, measure
from examples.detection.results import DETECTORS, table, with_results
from examples.imagenet.errors import OptionError, UserError

ROOT = pathlib.Path(__file__).parents[2]

SIZE = (100, 120)


def rle(box) -> dict:
    mask = np.zeros(SIZE, np.uint8)
    x, y, width, height = (int(value) for value in box)
    mask[y : y + height, x : x + width] = 1
    runs = run_lengths.encode(np.asfortranarray(mask))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def truth(image_id, box, category_id=1, **more) -> dict:
    entry = dict(image_id=image_id, bbox=box, category_id=category_id, iscrowd=0)
    return entry | dict(area=box[2] * box[3], segmentation=rle(box)) | more


def result(image_id, box, score, category_id=1) -> dict:
    return dict(
        image_id=image_id, bbox=box, score=score, category_id=category_id, segmentation=rle(box)
    )


def data_set(annotations) -> dict:
    return {
        "images": [
            dict(id=i, height=SIZE[0], width=SIZE[1], file_name=f"{i}.png") for i in range(4)
        ],
        "annotations": [{"id": 1 + i} | entry for i, entry in enumerate(annotations)],
        "categories": [dict(id=1, name="one"), dict(id=2, name="two"), dict(id=7, name="none")],
    }


ANNOTATIONS = [
    truth(0, [10, 10, 20, 20]),
    truth(0, [40, 40, 40, 50]),
    truth(0, [60, 5, 10, 10], category_id=2),
    truth(1, [5, 5, 110, 90]),
    truth(1, [50, 30, 60, 60], iscrowd=1),
    truth(2, [0, 0, 30, 30], category_id=2),
]
CONTENT = data_set(ANNOTATIONS)  # Image 3 is empty, and no object is of the last class.
RESULTS = [
    result(0, [10, 10, 20, 20], 0.9),
    result(0, [11, 10, 20, 21], 0.95),  # A duplicate.
    result(0, [42, 38, 40, 50], 0.4),
    result(0, [60, 5, 10, 10], 0.8),  # Of the wrong class.
    result(1, [5, 8, 100, 90], 0.7),
    result(1, [60, 40, 20, 20], 0.75),  # In the crowd: neither right nor wrong.
    result(1, [60, 41, 21, 20], 0.74),
    result(2, [2, 2, 30, 28], 0.6, category_id=2),
    result(3, [2, 2, 30, 28], 0.99, category_id=2),  # In an empty image.
    result(3, [2, 2, 30, 28], 0.99, category_id=7),
    result(0, [0, 0, 90, 90], 0.97) | {"segmentation": rle([80, 80, 9, 9])},  # In a large box.
]


def by_pycocotools(tmp_path, results, kind) -> COCOeval:
    """As a program that reads files calls pycocotools, which measures masks by their boxes if any."""
    if kind == "segm":
        results = [{name: x for name, x in entry.items() if name != "bbox"} for entry in results]
    (tmp_path / "truth.json").write_text(json.dumps(CONTENT))
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(
    "results", [RESULTS, RESULTS[:1], RESULTS[4:7]], ids=["all", "one", "crowd"]
)
def test_measures_equal_pycocotools(tmp_path, results):
    measured = measure(CONTENT, results, masks=True)
    for prefix, kind in (("", "bbox"), ("mask_", "segm")):
        evaluation = by_pycocotools(tmp_path, results, kind)
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
        got = [measured.summary[prefix + name] for name in names]
        np.testing.assert_array_equal(got, evaluation.stats[:6])
        for column, name in enumerate(("one", "two", "none")):
            precision = evaluation.eval["precision"][:, :, column, 0, -1]
            real = precision[precision > -1]
            expected = real.mean() if real.size else -1
            assert measured.classes[name][f"{prefix}AP"] == expected
    assert measured.classes["none"]["AP"] == -1 and measured.summary["AP"] > 0


def test_classes_of_one_name_are_told_apart():
    categories = [entry | {"name": "one"} for entry in CONTENT["categories"]]
    measured = measure(CONTENT | {"categories": categories}, RESULTS).classes
    expected = measure(CONTENT, RESULTS).classes
    assert measured == {
        f"one ({number})": expected[name] for number, name in [(1, "one"), (2, "two"), (7, "none")]
    }


def test_size_of_a_mask_is_its_own_and_not_that_of_its_box():
    wrong = result(0, [40, 40, 50, 50], 0.9) | {"segmentation": rle([60, 60, 10, 10])}
    content = data_set([truth(0, [10, 10, 20, 20])])
    measured = measure(content, [result(0, [10, 10, 20, 20], 0.5), wrong], masks=True).summary
    # Among small boxes there is no wrong one.
    assert measured["AP_small"] == pytest.approx(1)
    assert measured["mask_AP_small"] == measured["mask_AP"] == pytest.approx(0.5)


def test_annotations_may_be_numbered_from_zero():
    entries = [entry | {"id": entry["id"] - 1} for entry in CONTENT["annotations"]]
    assert measure(CONTENT | {"annotations": entries}, RESULTS) == measure(CONTENT, RESULTS)


def test_nothing_found_is_measured_as_zero():
    measured = measure(CONTENT, [], masks=True)
    assert measured.summary["AP"] == measured.summary["mask_AP"] == 0
    assert measured.classes == {
        "one": {"AP": 0, "mask_AP": 0},
        "two": {"AP": 0, "mask_AP": 0},
        "none": {"AP": -1, "mask_AP": -1},
    }


def test_nothing_to_find_is_measured_as_minus_one():
    content = data_set([])
    assert measure(content, []).summary["AP"] == -1
    assert measure(content, RESULTS).summary["AP"] == -1


def test_detections_in_a_crowd_are_neither_right_nor_wrong():
    crowd = [truth(0, [10, 10, 20, 20]), truth(0, [40, 40, 50, 50], iscrowd=1)]
    right = result(0, [10, 10, 20, 20], 0.5)
    inside = [result(0, [45 + i, 45, 20, 20], 0.9) for i in range(3)]
    beside = result(0, [95, 5, 20, 20], 0.9)
    assert measure(data_set(crowd), [right, *inside]).summary["AP"] == pytest.approx(1)
    # Precision 1/2 at every recall.
    assert measure(data_set(crowd), [right, beside]).summary["AP"] == pytest.approx(0.5)


def test_entries_need_neither_area_nor_crowd():
    bare = [
        {name: value for name, value in entry.items() if name not in ("area", "iscrowd")}
        for entry in ANNOTATIONS
        if not entry["iscrowd"]
    ]
    full = [entry for entry in ANNOTATIONS if not entry["iscrowd"]]
    assert measure(data_set(bare), RESULTS) == measure(data_set(full), RESULTS)


def test_precision_of_some_annotations_ignores_the_others():
    annotations = [truth(0, [10, 10, 20, 20], turn=5), truth(0, [60, 50, 40, 40], turn=50)]
    content = data_set(annotations)
    found = [result(0, [10, 10, 20, 20], 0.9), result(0, [60, 50, 40, 40], 0.8)]

    def precision(results, low, high):
        return average_precision(content, results, lambda entry: low <= entry["turn"] < high)

    assert precision(found, 0, 30) == precision(found, 30, 60) == pytest.approx(1)
    assert precision(found[:1], 0, 30) == pytest.approx(1)
    assert precision(found[:1], 30, 60) == 0
    assert precision(found, 60, 90) == -1
    # What is wrong is wrong among all.
    wrong = [result(0, [0, 60, 10, 10], 0.95), *found]
    assert precision(wrong, 0, 30) == pytest.approx(0.5)
    assert precision(found, 0, 90) == measure(content, found).summary["AP"]


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / "detection.json").read_text())["runs"]


def test_every_detector_has_a_recorded_run_of_each_of_three_seeds(recorded):
    runs = [(run["detector"], run["seed"]) for run in recorded]
    assert sorted(runs) == sorted(itertools.product(DETECTORS, range(3)))


@pytest.mark.parametrize("page", ["README.md", "examples/detection/README.md"])
def test_pages_show_the_table_of_the_recorded_runs(page, recorded):
    text = (ROOT / page).read_text()
    assert with_results(text, recorded) == text


def test_results_take_the_place_of_older_ones_on_a_page():
    measured = dict(AP50=0.5, rotation={"0 to 20": 0.25}, side={"20 to 30": 0.125})
    runs = [
        dict(detector=name, AP=ap, processor=processor, versions=dict(jax_dcn=version), **measured)
        for name, ap, processor, version in [
            ("plain", 0.25, "Some(R) Processor", "0.2.0"),
            ("modulated pooling", 0.5, r"Other \1", "0.2.0"),
            ("both", 0.5, "Some(R) Processor", "0.2.0"),
            ("both", 0.7, "Some(R) Processor", "0.1.0"),
        ]
    ]
    rest = "of convolutions.\n\n| other | table |\n|---|---|\n"
    older = "| detector | runs |\n|---|---|\n| plain | 1 |\n\nRuns by processor: 1 on a third.\n"
    page = f"Before\n\n{older}\nBins help most here: 1 against 2, and 3 together with {rest}"
    by_processor = (
        "Runs by processor: 3 on Some(R) Processor, 1 on Other \\1; "
        "by version of jax_dcn: 3 of 0.2.0, 1 of 0.1.0.\n"
    )
    means = "Bins help most here: 50.0 against 25.0, and 60.0 together with"
    expected = f"Before\n\n{table(runs)}\n\n{by_processor}\n{means} {rest}"
    assert with_results(page, runs) == expected
    for lost in ("| detector |", "help most here", "Runs by processor"):
        with pytest.raises(UserError, match=r"must have one .*; this one has 0"):
            with_results(page.replace(lost, ""), runs)


def test_a_name_for_results_is_refused_before_the_test(tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.json"):
        evaluate(tmp_path / "no_run", tmp_path, results=tmp_path)
