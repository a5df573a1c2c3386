# SPDX-License-Identifier: MIT
"""Images and objects in COCO's format reach a detector as pycocotools and mmdetection read them."""

import dataclasses
import json
import pickle
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from examples.detection.commands.predict import images_of
from examples.detection.commands.train import Training
from examples.detection.data import compose as compose_module
from examples.detection.data.batches import (
    NOTHING,
    Plan,
    evaluation_batches,
    place_objects,
    training_batches,
)
from examples.detection.data.coco import CocoReader, Objects
from examples.detection.data.compose import Warp, compose
from examples.detection.data.images import normalise, resize
from examples.detection.data.outlines import counts_of
from examples.detection.model.architecture import Architecture, View
from examples.detection.model.boxes import CONVENTIONS
from examples.detection.training.recipes import COMPOSED
from examples.imagenet.data import Share
from examples.imagenet.errors import OptionError, UserError

SIZES = {7: (40, 60), 3: (64, 36), 5: (50, 50), 9: (33, 45), 2: (20, 70)}
"""Heights and widths of images, by their ids, in the order of the file."""


def annotation(image_id, box, category_id=4, **more) -> dict:
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "image_id": image_id,
        "bbox": box,
        "category_id": category_id,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [polygon],
    } | more


ANNOTATIONS = [
    annotation(7, [5, 6, 20, 10]),
    annotation(7, [30, 2, 12.5, 30], category_id=11),
    annotation(7, [50, 30, 30, 30]),  # Leaves the image.
    annotation(7, [70, 5, 9, 9]),  # Beside the image.
    annotation(7, [5, 5, 0.5, 9]),  # Less than a pixel wide.
    annotation(7, [1, 1, 5, 5], area=0),
    annotation(7, [1, 1, 5, 5], ignore=True),
    annotation(7, [0, 0, 60, 40], iscrowd=1, segmentation={"size": [40, 60], "counts": [0, 2400]}),
    annotation(7, [0, 0, 9, 9], category_id=99),  # Of no category.
    annotation(3, [4, 8, 10, 40], category_id=11),
    annotation(9, [1, 2, 9, 9], iscrowd=1, segmentation={"size": [33, 45], "counts": [0, 1485]}),
    annotation(2, [1, 2, 9, 9]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose pixels say where they are, with annotations of every kind."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    images = []
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
    for number, (height, width) in SIZES.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.arange(width)
        pixels[..., 1] = np.arange(height)[:, None]
        pixels[..., 2] = number
        for split in ("train2017", "val2017"):
            Image.fromarray(pixels).save(root / split / f"{number}.png")
        images.append(dict(id=number, file_name=f"{number}.png", height=height, width=width))
    content = {
        "images": images,
        "annotations": [{"id": 1 + i} | entry for i, entry in enumerate(ANNOTATIONS)],
        "categories": [{"id": 11, "name": "late"}, {"id": 4, "name": "early"}],
    }
    for name in ("instances_train2017", "instances_val2017"):
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content))
    (root / "annotations" / "person_keypoints_train2017.json").write_text("{}")
    return root


def test_objects_are_those_that_mmdetection_trains_on(folder):
    reader = CocoReader(folder, "train")
    assert [image["id"] for image in reader.images] == list(SIZES)
    first = reader.objects(0)
    np.testing.assert_array_equal(
        first.boxes, [[5, 6, 25, 16], [30, 2, 42.5, 32], [50, 30, 80, 60]]
    )
    assert first.labels.tolist() == [1, 0, 1] and first.masks is None
    for empty in (2, 3):  # Without annotations, and with a crowd alone.
        assert reader.objects(empty).boxes.shape == (0, 4)


def test_classes_have_the_order_of_the_file_as_in_pycocotools(folder):
    coco = COCO(str(folder / "annotations" / "instances_train2017.json"))
    reader = CocoReader(folder, "train")
    assert reader.category_ids == coco.getCatIds() == [11, 4]
    assert reader.class_names == ["late", "early"]


def test_last_pixel_belongs_to_boxes_of_the_seed(folder):
    boxes = CocoReader(folder, "train", extent=1.0).objects(1).boxes
    np.testing.assert_array_equal(boxes, [[4, 8, 13, 47]])


def test_training_leaves_out_images_without_annotations_and_small_ones(folder):
    reader = CocoReader(folder, "train")
    assert reader.to_train_on().tolist() == [0, 1, 3]


def test_masks_are_those_of_pycocotools_stretched_over_the_box(folder):
    coco = COCO(str(folder / "annotations" / "instances_train2017.json"))
    reader = CocoReader(folder, "train")
    objects = reader.objects(0, cells=10)
    # A rectangle fills its box; of the object that leaves the image a third is left.
    whole = coco.annToMask(coco.loadAnns([1])[0])
    assert whole[6:16, 5:25].all() and whole.sum() == 200
    assert objects.masks.shape == (3, 10, 10) and objects.masks[0].all()


@pytest.mark.parametrize("extent", [0.0, 1.0])
def test_mask_of_an_object_that_leaves_the_image_fills_the_part_of_its_box_in_the_image(
    tmp_path, extent
):
    # Of the box 10 columns and 8 rows are in the image; the object has the first 5 and the last 4.
    outline = [[40, 36, 45, 36, 45, 40, 40, 40]]
    entry = annotation(1, [40, 32, 30, 24], segmentation=outline)
    read_changed(tmp_path, {"annotations": [entry]})
    objects = CocoReader(tmp_path, "train", extent).objects(0, cells=20)
    expected = np.zeros((20, 20), bool)
    expected[10:, :10] = True
    np.testing.assert_array_equal(objects.masks, [expected])
    placed = place_objects(objects, np.array([2.0, 2]), np.array([80, 100]), False, extent)
    np.testing.assert_array_equal(placed.boxes, [[80, 64, 100 - extent, 80 - extent]])


def test_polygons_and_run_lengths_of_either_kind_give_the_same_mask(folder, tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 5:20] = 1
    mask[20:30, 5:12] = 1
    packed = run_lengths.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    forms = [
        {"size": [40, 60], "counts": packed["counts"].decode()},
        {"size": [40, 60], "counts": counts},
        [[5, 10, 20, 10, 20, 20, 12, 20, 12, 30, 5, 30]],
    ]
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    entries = [
        annotation(7, [5, 10, 15, 20], id=i, segmentation=form) for i, form in enumerate(forms)
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").symlink_to(folder / "train2017")
    (tmp_path / "annotations" / "train.json").write_text(
        json.dumps(content | {"annotations": entries})
    )
    masks = CocoReader(tmp_path, "train").objects(0, cells=20).masks
    expected = np.zeros((20, 20), bool)  # A cell is 0.75 pixels wide and a pixel high.
    expected[:10] = True
    expected[10:, :9] = True
    for found in masks:
        np.testing.assert_array_equal(found[[3, 13]], expected[[3, 13]])
        np.testing.assert_array_equal(found[:, [2, 17]], expected[:, [2, 17]])


@pytest.mark.parametrize("extent", [0.0, 1.0])
def test_flipped_boxes_surround_the_flipped_pixels(extent):
    width, height = 60, 40
    pixels = np.zeros((height, width), bool)
    pixels[6:16, 5:25] = True
    box = np.array([[5, 6, 25 - extent, 16 - extent]], np.float32)
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0, 0] = True
    objects = Objects(box, np.array([0]), masks)
    got = place_objects(objects, np.ones(2), np.array([height, width]), True, extent)
    rows, columns = np.nonzero(pixels[:, ::-1])
    expected = [columns.min(), rows.min(), columns.max() + 1 - extent, rows.max() + 1 - extent]
    np.testing.assert_array_equal(got.boxes, [expected])
    assert np.argwhere(got.masks).tolist() == [[0, 0, 3]]


def test_boxes_are_resized_and_cut_with_the_image():
    objects = Objects(np.array([[10, 20, 30, 70]], np.float32), np.array([1]), None)
    got = place_objects(objects, np.array([2.0, 1.5]), np.array([90, 50]), False, 0.0)
    np.testing.assert_array_equal(got.boxes, [[20, 30, 50, 90]])


@pytest.mark.parametrize(
    ("size", "checksum"),
    [((31, 50), 586387907), ((80, 113), 1789775398)],
    ids=["smaller", "larger"],
)
def test_every_bit_of_a_resized_image_equals_opencvs(size, checksum):
    pixels = np.random.default_rng(0).integers(0, 256, (43, 61, 3), np.uint8)
    # Of what cv2.resize makes with INTER_LINEAR in OpenCV 5.0.
    assert zlib.crc32(resize(pixels, size).tobytes()) == checksum


def test_training_batches_hold_resized_images_and_their_objects(folder):
    reader = CocoReader(folder, "train")
    view = View(32, 64)
    (batch,) = list(training_batches(reader, range(1), batch_size=2, view=view, max_objects=2))
    assert batch["labels"].shape == (2, 2) and batch["image"].dtype == np.uint8
    for row in range(2):
        height, width = batch["size"][row].astype(int)
        image = batch["image"][row]
        number = image[0, 0, 2]
        expected = min(32 / min(SIZES[number]), 64 / max(SIZES[number]))
        assert (height, width) == tuple(int(n * expected + 0.5) for n in SIZES[number])
        assert not image[height:].any() and not image[:, width:].any()
        if number == 7:  # Of its three objects two find room.
            assert batch["labels"][row].tolist() == [1, 0]
            left, right = batch["boxes"][row, 0, [0, 2]]
            flipped = image[0, 0, 0] > image[0, width - 1, 0]
            scale = width / 60
            expected = np.array([60 - 25, 60 - 5] if flipped else [5, 25]) * scale
            np.testing.assert_allclose([left, right], expected, rtol=1e-6)


def test_training_says_how_many_images_have_objects_without_room(folder, monkeypatch, capsys):
    monkeypatch.setattr(Training, "_build", lambda self: None)
    for most, said in ((2, True), (3, False)):  # One image has nine annotations, three of objects.
        Training(dataclasses.replace(COMPOSED, data=folder, max_objects=most), None)
        note = f"1 of 5 images have more objects than --max-objects {most}: the rest is trained as"
        assert (note in capsys.readouterr().err) == said


def test_batches_depend_on_step_and_seed_alone(folder):
    reader = CocoReader(folder, "train")
    options = dict(batch_size=2, view=View(32, 64), max_objects=3)
    every = list(training_batches(reader, range(7), **options))
    resumed = list(training_batches(reader, range(4, 7), **options))
    shares = [
        list(training_batches(reader, range(4, 7), share=Share(index, 2), **options))
        for index in range(2)
    ]
    for step, batch in enumerate(resumed):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, every[4 + step][name])
            halves = [share[step][name] for share in shares]
            np.testing.assert_array_equal(np.concatenate(halves), array)
    other = list(training_batches(reader, range(7), seed=1, **options))
    assert any(
        np.any(a["image"] != b["image"])
        for a, b in zip(every, other, strict=True)
        if a["image"].shape == b["image"].shape
    )


def test_every_epoch_has_all_images_in_batches_of_one_orientation():
    sizes = np.array([(40, 60), (60, 40), (50, 50), (30, 70), (70, 30), (20, 10), (5, 9)])
    plan = Plan(sizes, 2, seed=3)
    assert plan.steps == 4
    orders = []
    for epoch in range(3):
        batches = [plan.images(4 * epoch + step) for step in range(4)]
        assert {image for batch in batches for image in batch} == set(range(7))
        for batch in batches:
            high = sizes[batch][:, 0] > sizes[batch][:, 1]
            assert high.all() or not high.any()
        orders.append(np.concatenate(batches).tolist())
    assert orders[0] != orders[1]
    np.testing.assert_array_equal(plan.images(1), Plan(sizes, 2, seed=3).images(1))


def test_tests_see_every_image_once_empty_ones_included(folder):
    reader = CocoReader(folder, "val")
    seen = []
    for index in range(2):
        share = Share(index, 2)
        batches, steps = evaluation_batches(reader, batch_size=4, view=View(32, 64), share=share)
        batches = list(batches)
        assert len(batches) == steps == 2
        seen += [number for batch in batches for number in batch["index"]]
        for batch in batches:
            for row, number in enumerate(batch["index"]):
                if number != NOTHING:
                    assert batch["image"][row, 0, 0, 2] == list(SIZES)[number]
    assert sorted(seen) == [NOTHING] * 3 + [0, 1, 2, 3, 4]


def test_padding_is_zero_and_pixels_are_normalised():
    pixels = np.full((1, 4, 6, 3), 200, np.uint8)
    images = normalise(pixels, np.array([[3.0, 5.0]], np.float32), np.ones((1, 2), np.float32))
    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    expected = np.zeros((1, 4, 6, 3))
    expected[:, :3, :5] = (200 - np.array(mean)) / deviation
    np.testing.assert_allclose(images.pixels, expected, rtol=1e-6)


def test_composed_boxes_and_masks_are_exact(tmp_path):
    compose(tmp_path / "a", train=6, val=3, size=96)
    compose(tmp_path / "b", train=6, val=3, size=96)
    for split, count in (("train", 6), ("val", 3)):
        text = (tmp_path / "a" / "annotations" / f"{split}.json").read_text()
        assert text == (tmp_path / "b" / "annotations" / f"{split}.json").read_text()
        content = json.loads(text)
        assert "composed" in content["info"]["description"] and len(content["images"]) == count
        assert len({entry["image_id"] for entry in content["annotations"]}) == count
        taken = np.zeros((count, 96, 96), int)
        for entry in content["annotations"]:
            mask = run_lengths.decode(entry["segmentation"]).astype(bool)
            rows, columns = np.nonzero(mask)
            left, top, width, height = entry["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert entry["area"] == mask.sum() and abs(entry["rotation"]) <= Warp().rotation
            taken[entry["image_id"]] += mask
        assert taken.max() == 1  # No pixel is of two digits.
    first = [(tmp_path / name / "val" / "000001.png").read_bytes() for name in ("a", "b")]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=32), "--largest must be at most 32, got 64"),
        (dict(most=0), "--most must be at least 1, got 0"),
        (dict(train=0), "--train must be at least 1, got 0"),
        (dict(val=0), "--val must be at least 1, got 0"),
        (dict(seed=-1), "--seed must be at least 0"),
        (dict(warp=Warp(smallest=65)), "--largest must be at least 65"),
        (dict(warp=Warp(shear=-0.1)), "--shear must be at least 0"),
    ],
)
def test_images_that_cannot_be_composed_are_refused(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        compose(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_interrupted_composition_can_be_done_again(tmp_path, monkeypatch):
    composed_image, called = compose_module.composed_image, []

    def interrupted(*arguments):
        called.append(arguments)
        if len(called) == 4:
            raise KeyboardInterrupt
        return composed_image(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compose_module, "composed_image", interrupted)
        compose(tmp_path / "again", train=3, val=2, size=64)
    for name in ("again", "once"):
        compose(tmp_path / name, train=3, val=2, size=64)
    files = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*.*"))
    assert len(files) == 3 + 2 + 2
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "once" / path).read_bytes()


def test_warped_scans_are_turned_and_scaled_as_they_say():
    bar = np.zeros((8, 8))
    bar[3:5, 1:7] = 1
    for seed in range(4):
        random = np.random.default_rng(seed)
        ink, values = compose_module._warped(random, bar, 160, Warp(shear=0, smallest=40))
        row, column = np.nonzero(ink > 0.5)
        (rows, both), (_, columns) = np.cov(row, column)
        # From the columns' axis to the rows', which points down.
        angle = np.degrees(np.arctan2(2 * both, columns - rows)) / 2
        assert angle == pytest.approx(values["rotation"], abs=3)
        length = np.sqrt(12 * np.linalg.eigvalsh(np.cov(row, column))[1])
        assert length == pytest.approx(6 / 8 * values["side"], rel=0.1)


def test_digits_keep_their_labels(tmp_path, monkeypatch):
    digits, warped, drawn = load_digits(), compose_module._warped, []

    def recorded(random, scan, *rest):
        drawn.append(np.flatnonzero(np.all(digits.images / 16 == scan, axis=(1, 2)))[0])
        return warped(random, scan, *rest)

    monkeypatch.setattr(compose_module, "_warped", recorded)
    compose(tmp_path, train=1, val=12, size=64, most=1)
    content = json.loads((tmp_path / "annotations" / "val.json").read_text())
    labels = [entry["category_id"] for entry in content["annotations"]]
    np.testing.assert_array_equal(labels, digits.target[drawn[1:]])
    assert len(set(labels)) > 3


def test_splits_share_neither_digits_nor_photographs():
    parts = [compose_module.Source(split).scans for split in ("train", "val")]
    every = sorted(map(bytes, load_digits().images / 16))
    assert sorted(map(bytes, np.concatenate(parts))) == every and min(map(len, parts)) > 0
    photographs = compose_module.PHOTOGRAPHS
    assert not set(photographs["train"]) & set(photographs["val"])


def test_ink_of_a_mask_differs_from_the_photograph(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "examples.detection.data.compose._drawn", lambda random, pixels, ink: pixels
    )
    compose(tmp_path / "without", train=1, val=2, size=64)
    monkeypatch.undo()
    compose(tmp_path / "with", train=1, val=2, size=64)
    content = json.loads((tmp_path / "with" / "annotations" / "val.json").read_text())
    first = next(entry for entry in content["annotations"] if entry["image_id"] == 0)
    mask = run_lengths.decode(first["segmentation"]).astype(bool)
    images = [
        np.asarray(Image.open(tmp_path / name / "val" / "000000.png")).astype(int).mean(-1)
        for name in ("with", "without")
    ]
    changed = np.abs(images[0] - images[1]) > 20
    assert changed[mask].mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "annotations" / "train.json").unlink(), "no annotations/.*train"),
        (lambda root: shutil.rmtree(root / "train"), "no folder train"),
        (lambda root: (root / "train" / "a.png").unlink(), "1 of 1 images .* the first of them a"),
        (lambda root: (root / "annotations" / "train.json").write_text("{"), "no JSON that can"),
        (lambda root: (root / "annotations" / "train.json").write_text("{}"), "no list 'images'"),
    ],
)
def test_wrong_folders_are_answered_in_a_sentence(tmp_path, change, message):
    read_changed(tmp_path, {})
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        CocoReader(tmp_path, "train")


BARE = {
    "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
    "annotations": [{"image_id": 1, "category_id": 4, "bbox": [5, 6, 7, 8]}],
    "categories": [{"id": 4, "name": "thing"}],
}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("images", {"height": None}, "Entry 0 of 'images' .* None as its 'height'"),
        ("images", {"width": 0}, "0 as its 'width'"),
        ("images", {"width": 50.5}, "50.5 as its 'width'"),
        ("images", {"height": float("inf")}, "inf as its 'height'"),
        ("images", {"height": 1e300}, "1e\\+300 as its 'height'"),
        ("images", {"file_name": 7}, "7 as its 'file_name'"),
        ("images", {"id": [1]}, r"\[1\] as its 'id'"),
        ("annotations", {"bbox": [1, 2, 3]}, r"\[1, 2, 3\] as its 'bbox'"),
        ("annotations", {"bbox": [1, 2, "3", 4]}, "as its 'bbox'"),
        ("annotations", {"bbox": [1, 2, float("nan"), 4]}, "as its 'bbox'"),
        ("annotations", {"category_id": "4"}, "'4' as its 'category_id'"),
        ("annotations", {"bbox": [1, 2, 10**400, 4]}, "as its 'bbox'"),
        ("annotations", {"id": [1]}, r"\[1\] as its 'id'"),
        ("annotations", {"area": None}, "None as its 'area'"),
        ("annotations", {"area": 10**400}, "as its 'area'"),
        ("annotations", {"area": float("nan")}, "nan as its 'area'"),
        ("annotations", {"iscrowd": "0"}, "'0' as its 'iscrowd'"),
        ("categories", {"name": None}, "None as its 'name'"),
    ],
)
def test_fields_that_are_wrong_or_missing_are_named(tmp_path, kind, change, message):
    read_changed(tmp_path, {})
    with pytest.raises(UserError, match=message):
        read_changed(tmp_path, {kind: [BARE[kind][0] | change]})
    for name in BARE[kind][0].keys() & change.keys():
        entry = {field: value for field, value in BARE[kind][0].items() if field != name}
        with pytest.raises(UserError, match=f"'nothing' as its '{name}'"):
            read_changed(tmp_path, {kind: [entry]})


def read_changed(root, change) -> CocoReader:
    for name in ("annotations", "train"):
        (root / name).mkdir(exist_ok=True)
    (root / "train" / "a.png").touch()
    (root / "annotations" / "train.json").write_text(json.dumps(BARE | change))
    return CocoReader(root, "train")


def test_lists_of_nothing_and_doubled_ids_are_refused(tmp_path):
    assert len(read_changed(tmp_path, {"annotations": []})) == 1
    for kind in ("images", "categories"):
        with pytest.raises(UserError, match=f"has no {kind}: its list is empty"):
            read_changed(tmp_path, {kind: []})
        with pytest.raises(UserError, match=f"Entry 1 of '{kind}' .* has the 'id' . of an entry"):
            read_changed(tmp_path, {kind: 2 * BARE[kind]})
    entry = BARE["annotations"][0]
    assert len(read_changed(tmp_path, {"annotations": [entry, entry]}).objects(0).labels) == 2
    with pytest.raises(UserError, match=r"Entry 1 of 'annotations' .* 'id' 3 of an entry"):
        read_changed(tmp_path, {"annotations": 2 * [entry | {"id": 3}]})
    path = tmp_path / "annotations" / "train.json"
    for content, message in (("[]", "no list 'images'"), ("[" * 100000, "is no JSON")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            CocoReader(tmp_path, "train")


def test_a_mark_of_the_byte_order_is_no_part_of_the_json(tmp_path):
    read_changed(tmp_path, {})
    path = tmp_path / "annotations" / "train.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(CocoReader(tmp_path, "train")) == 1


def test_objects_come_from_the_instances_and_the_folder_of_their_name(folder, tmp_path):
    (tmp_path / "annotations").mkdir()
    text = (folder / "annotations" / "instances_train2017.json").read_text()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    for name in ("captions_train2017", "person_keypoints_train2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text("{}")
    (tmp_path / "train").mkdir()
    (tmp_path / "train2017").symlink_to(folder / "train2017")
    reader = CocoReader(tmp_path, "train")
    assert reader.path.name == "instances_train2017.json" and reader.pixels(0).shape == (40, 60, 3)
    (tmp_path / "annotations" / "instances_train2014.json").write_text(text)
    with pytest.raises(UserError, match=r"2014\.json, instances_train2017\.json: keep one"):
        CocoReader(tmp_path, "train")


def test_images_may_be_in_folders_of_their_own_and_lost_ones_are_counted(tmp_path):
    read_changed(tmp_path, {})
    for name in ("one", "two"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "a.png").touch()
    names = ["a.png", "one/a.png", "./two/a.png", str(tmp_path / "train" / "a.png")]
    lost = ["two/b.png", "three/a.png", "b.png", 300 * "b"]

    def read(names):
        images = [BARE["images"][0] | {"id": i, "file_name": n} for i, n in enumerate(names)]
        return read_changed(tmp_path, {"images": images})

    assert len(read(names)) == 4
    with pytest.raises(UserError, match=r"^4 of 8 images of .*, the first of them two/b\.png"):
        read([*names, *lost])


def test_copy_of_a_worker_takes_about_the_memory_of_the_file(tmp_path):
    random = np.random.default_rng(0)
    images = [BARE["images"][0] | {"id": i, "url": f"https://example.com/{i}"} for i in range(50)]
    entries = [
        annotation(i, [5, 6, 20, 10], segmentation=random.uniform(0, 40, (1, 80)).round(2).tolist())
        for i in range(50)
        for _ in range(7)
    ]
    reader = read_changed(tmp_path, {"images": images, "annotations": entries})
    sent = pickle.dumps(reader)
    tracemalloc.start()
    received = pickle.loads(sent)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 1.1 * reader.path.stat().st_size
    for array, expected in zip(received.objects(9, 5), reader.objects(9, 5), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert received.content == reader.content


def test_annotations_without_masks_are_refused_where_masks_are_needed(tmp_path):
    reader = read_changed(tmp_path, {})
    with pytest.raises(UserError, match=r"box \[5, 6, 7, 8\] of .*json has no segmentation"):
        reader.check_masks(of_objects=False)
    for outline in ([], [[]], [5, 6, 12], {"counts": [0, 9]}, "polygon"):
        entry = BARE["annotations"][0] | {"segmentation": outline}
        with pytest.raises(UserError, match="has no segmentation"):
            read_changed(tmp_path, {"annotations": [entry]}).check_masks(of_objects=False)
    entry = BARE["annotations"][0] | {"segmentation": [[5, 6, 12, 6, 12, 14]]}
    read_changed(tmp_path, {"annotations": [entry, entry | {"image_id": 9}]}).check_masks(
        of_objects=False
    )
    entry["segmentation"] = [[-500, 6, 500, 6, 12, 500]]  # As far away as corners may be.
    reader = read_changed(tmp_path, {"annotations": [entry]})
    reader.check_masks(of_objects=False)
    assert reader.objects(0, cells=9).masks.any()
    bare = BARE["annotations"][0]
    for left_out in (bare | {"ignore": 1}, bare | {"iscrowd": 1, "segmentation": None}):
        reader = read_changed(tmp_path, {"annotations": [entry, left_out]})
        reader.check_masks(of_objects=True)
        with pytest.raises(UserError, match="has no segmentation"):
            reader.check_masks(of_objects=False)
    with pytest.raises(UserError, match="has no segmentation"):
        read_changed(tmp_path, {"annotations": [entry, bare]}).check_masks(of_objects=True)


RUNS = run_lengths.encode(np.asfortranarray(np.eye(40, 50, dtype=np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("outline", "fault"),
    [
        ({"size": [50, 40], "counts": RUNS}, r"size \[50, 40\], and the image has \[40, 50\]"),
        ({"size": [40, 50, 1], "counts": RUNS}, r"size \[40, 50, 1\]"),
        (
            {"size": [40, 50], "counts": RUNS[:-1]},
            "counts that are no run lengths",  # Cut off.
        ),
        ({"size": [40, 50], "counts": ""}, "counts of 0 pixels"),
        (
            {"size": [40, 50], "counts": RUNS + "1"},
            "counts of [0-9]+ pixels, and the image has 2000",
        ),
        ({"size": [40, 50], "counts": "garbage"}, "counts"),
        ({"size": [40, 50], "counts": RUNS + "\x7f"}, "counts that are no run lengths"),
        ({"size": [40, 50], "counts": 9 * "o" + "0"}, "counts that are no run lengths"),
        ({"size": [40, 50], "counts": [0, 2001]}, "counts of 2001 pixels, and the image has 2000"),
        ({"size": [40, 50], "counts": [-1, 2001]}, "counts that are no run lengths"),
        ({"size": [40, 50], "counts": [1000.5, 999.5]}, "counts that are no run lengths"),
        ({"size": [40, 50], "counts": [0, 10**30]}, "counts that are no run lengths"),
        ({"size": [40, 50], "counts": 3 * [2**62] + [2**62 + 2000]}, "counts that are no run"),
        ({"size": [40, 50], "counts": 2000}, "counts that are no run lengths"),
        ([[5, 6, 12, 6, 12, 14, 3]], "a polygon of 7 numbers, which are no pairs"),
        ([[5, 6, 12, 6, 12, 14], [5, 6, 12, 14]], "a polygon of 4 numbers, which are no three"),
        ([[5, 6, 12, 6, 501, 14]], "a corner more than 10 times the longer side of the image away"),
        ([[5, 6, 12, 6, 12, -501]], "a corner more than 10 times the longer side"),
        ([[5, 6, 12, 6, 12, 10**400]], "a corner more than 10 times the longer side"),
        ([[5, 6, 12, 6, 12, "14"]], "corners that are no numbers"),
        ([[5, 6, 12, 6, 12, 14], [5, 6, 12, 6, 12, float("nan")]], "corners that are no numbers"),
    ],
)
def test_damaged_masks_are_refused_with_their_annotation(tmp_path, outline, fault):
    sound = BARE["annotations"][0] | {"id": 3, "segmentation": {"size": [40, 50], "counts": RUNS}}
    read_changed(tmp_path, {"annotations": [sound]}).check_masks(of_objects=False)
    damaged = sound | {"id": 8, "segmentation": outline}
    reader = read_changed(tmp_path, {"annotations": [sound, damaged]})
    message = f"^Annotation 8 of .*json has a segmentation with .*{fault}.*: write the mask again"
    with pytest.raises(UserError, match=message):
        reader.check_masks(of_objects=False)
    with pytest.raises(UserError, match=message):
        reader.objects(0, cells=5)


@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.99, 1])
def test_packed_run_lengths_are_those_of_the_columns(density):
    mask = np.random.default_rng(0).random((61, 83)) < density
    packed = run_lengths.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    expected = np.diff(np.concatenate([[0], edges, [mask.size]]))
    np.testing.assert_array_equal(counts_of(packed), expected)
    np.testing.assert_array_equal(counts_of(expected.tolist()), expected)


def test_sizes_written_as_floats_are_whole_pixels(tmp_path):
    image = BARE["images"][0] | {"height": 40.0, "width": 50.0}
    entry = BARE["annotations"][0] | {"segmentation": [[5, 6, 12, 6, 12, 14]]}
    reader = read_changed(tmp_path, {"images": [image], "annotations": [entry]})
    assert reader.objects(0, cells=9).masks.shape == (1, 9, 9)
    assert [type(reader.images[0][name]) for name in ("height", "width")] == [int, int]


@pytest.mark.parametrize("conventions", CONVENTIONS)
@pytest.mark.parametrize("size", [(333, 501), (37, 990), (1, 1), (1, 5000)])
def test_image_is_the_same_to_eval_and_to_predict(tmp_path, conventions, size):
    architecture = Architecture(conventions=conventions, short=64, long=96)
    (tmp_path / "train").mkdir()
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "train" / "a.png")
    image = BARE["images"][0] | {"height": size[0], "width": size[1]}
    reader = read_changed(tmp_path, {"images": [image]})
    batches, _ = evaluation_batches(reader, batch_size=1, view=architecture.view)
    (batch,) = batches
    found = normalise(batch["image"], batch["size"], batch["scale"])
    for array, expected in zip(found, images_of(architecture, reader.pixels(0)), strict=True):
        np.testing.assert_array_equal(array, expected)
    scale = min(64 / min(size), 96 / max(size))
    assert np.all(batch["size"] >= 1) and np.all(np.isfinite(batch["scale"]))
    if conventions == "seed":
        np.testing.assert_allclose(batch["scale"], scale, rtol=1e-6)
    else:
        np.testing.assert_allclose(
            batch["scale"][0] * size[::-1], batch["size"][0, ::-1], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("orientation", "size", "beginning"),
    [
        (1, (41, 60), r"a\.png has height and width \(40, 60\)"),
        (1, (60, 40), r"a\.png has height and width \(40, 60\)"),
        (6, (40, 60), r"a\.png, upright as its camera says, has height and width \(60, 40\)"),
    ],
)
def test_image_of_another_size_than_the_file_says_is_an_error(
    tmp_path, orientation, size, beginning
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = BARE["images"][0] | {"height": size[0], "width": size[1]}
    reader = read_changed(tmp_path, {"images": [image]})
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "train" / "a.png", exif=exif)
    with pytest.raises(UserError, match=rf"^{beginning}, and .* says \({size[0]}, {size[1]}\)"):
        reader.pixels(0)
