# SPDX-License-Identifier: MIT
"""What a training step of the ImageNet example sees depends on the seed and the step alone."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples.imagenet import bench
from examples.imagenet.data import (
    NO_LABEL,
    Share,
    centre_view,
    evaluation_batches,
    read_ahead,
    training_batches,
)
from examples.imagenet.errors import UserError
from examples.imagenet.pack import pack
from examples.imagenet.readers import SPLITS, class_lines, class_names, decode, open_reader
from examples.imagenet.settings import PRESETS

ROOT = pathlib.Path(__file__).parents[2]
IMAGE_SIZE = 9
batches_of = functools.partial(training_batches, batch_size=6, image_size=IMAGE_SIZE, seed=3)


class Numbered:
    """Seven images of different sizes, each of the one colour that is its class."""

    class_names = [str(index) for index in range(7)]  # noqa: RUF012

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        colours = np.random.default_rng(index).integers(256, size=(10 + index, 20, 3))
        return colours.astype(np.uint8), index


def assert_equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], strict=True)


def write_images(folder, names_of: dict[str, list[str]]):
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for class_name, names in names_of.items():
            (folder / part / class_name).mkdir(parents=True)
            for name in names:
                pixels = random.integers(256, size=(12, 17, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / class_name / name)


def test_every_epoch_sees_every_image_once_in_another_order():
    labels = np.concatenate([batch["label"] for batch in batches_of(Numbered(), range(7))])
    epochs = labels.reshape(6, 7)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(7), (6, 1)))
    assert len(np.unique(epochs, axis=0)) > 1


def test_epochs_crop_the_same_image_differently():
    batches = list(batches_of(Numbered(), range(7)))
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    crops = images[labels == 0]
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops)


def test_resumed_batches_equal_uninterrupted_ones():
    uninterrupted = list(batches_of(Numbered(), range(5)))
    assert_equal(uninterrupted[2:], batches_of(Numbered(), range(2, 5)))


def test_worker_processes_change_nothing():
    reader = open_reader("digits", "train")  # Workers import it: a class of this file would not do.
    assert_equal(batches_of(reader, range(3)), batches_of(reader, range(3), workers=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_read_ahead_are_as_many_as_said(workers, tmp_path):
    class Counted(Numbered):  # Workers get a class of this function as a value.
        def __getitem__(self, index):
            with pathlib.Path(count).open("a") as file:
                file.write("x")
            return np.zeros((9, 9, 3), np.uint8), 0

    count, expected = tmp_path / "count", 1 + read_ahead(workers)
    batches = training_batches(Counted(), range(30), batch_size=1, image_size=9, workers=workers)
    with contextlib.closing(batches):
        next(batches)
        end = time.monotonic() + 30
        while count.stat().st_size < expected and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        assert count.stat().st_size == expected


def test_workers_leave_interrupts_to_the_program():
    class Handled(Numbered):  # Workers get a class of this function as a value.
        def __getitem__(self, index):
            return np.zeros((9, 9, 3), np.uint8), int(signal.getsignal(signal.SIGINT))

    batches = training_batches(Handled(), range(1), batch_size=1, image_size=9, workers=1)
    assert [batch["label"].item() for batch in batches] == [signal.SIG_IGN]


def test_bench_reads_what_was_read_ahead_after_it_has_built_the_network(monkeypatch):
    events: list = []

    def batches(*_, **__):
        try:
            while True:
                events.append("read")
                yield {}
        finally:
            events.append("closed")

    monkeypatch.setattr(bench, "training_batches", batches)
    monkeypatch.setattr(bench, "_compiled", lambda *_: events.append("built") or {})
    monkeypatch.setattr(bench, "report", lambda *_: events.append("report"))
    bench.bench(dataclasses.replace(PRESETS["generated"], workers=0))
    assert events == ["read", "built", *["read"] * read_ahead(0), "report", "closed"]


@pytest.mark.parametrize(("workers", "steps", "timed"), [(0, None, 20), (32, None, 32), (3, 7, 9)])
def test_bench_times_whole_rounds_of_the_workers(workers, steps, timed):
    settings = dataclasses.replace(PRESETS["generated"], workers=workers, steps=steps)
    assert bench.timed_steps(settings) == timed


READ_AND_END = """
from examples.imagenet.data import training_batches
from examples.imagenet.readers import open_reader
def read():
    reader = open_reader("digits", "train")
    batches = training_batches(reader, range(6), batch_size=600, image_size=9, workers=2)
    for _ in range({count}):
        next(batches)
    batches.close()
read()
"""


@pytest.mark.parametrize("count", [2, 6])
def test_program_that_closes_its_batches_leaves_no_shared_memory(count):
    command = [sys.executable, "-c", READ_AND_END.format(count=count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "shared_memory" not in done.stderr  # Grain may warn of other things.


@pytest.mark.parametrize("count", [2, 3])
def test_training_processes_share_the_batch_of_one(count):
    shares = [batches_of(Numbered(), range(4), share=Share(index, count)) for index in range(count)]
    joined = (
        {name: np.concatenate([share[name] for share in together]) for name in together[0]}
        for together in zip(*shares, strict=True)
    )
    assert_equal(batches_of(Numbered(), range(4)), joined)


def test_evaluation_sees_every_image_once():
    batches = list(evaluation_batches(Numbered(), batch_size=4, image_size=IMAGE_SIZE))
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, [*range(7), NO_LABEL])
    expected = np.stack([centre_view(Numbered()[index][0], IMAGE_SIZE) for index in range(7)])
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images[:7], expected)


def test_evaluation_sees_the_middle():
    image = np.zeros((40, 64, 3), np.uint8)
    image[3:37, 15:49] = 255  # The middle 7/8 of 40 pixels are one more on every side.
    assert 0 < centre_view(image, 5).min() < 255
    image[2:38, 14:50] = 255
    assert centre_view(image, 5).min() == 255


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors_half_of_the_images(flip):
    class Sloped(Numbered):
        def __getitem__(self, index):
            return np.tile(np.arange(0, 250, 10, np.uint8)[:, None], (25, 1, 3)), index

    images = np.concatenate(
        [batch["image"] for batch in batches_of(Sloped(), range(10), flip=flip)]
    ).astype(int)
    mirrored = images[:, 0, 0, 0] > images[:, 0, -1, 0]
    assert 0.25 < mirrored.mean() < 0.75 if flip else not mirrored.any()


@pytest.mark.parametrize("data", ["digits", "generated"])
def test_parts_of_built_in_data_share_no_image(data):
    readers = [open_reader(data, split) for split in SPLITS]
    assert readers[0].class_names == readers[1].class_names and len(readers[0].class_names) == 10
    kept = [{reader[index][0].tobytes() for index in range(len(reader))} for reader in readers]
    assert not kept[0] & kept[1] and min(map(len, kept)) >= 100


def test_folder_gives_every_image_with_the_class_of_its_folder(tmp_path):
    write_images(tmp_path, {"b dog": ["2.PNG", "1.png"], "a cat": ["3.png", "notes.png"]})
    (tmp_path / "train" / "a cat" / "notes.png").rename(tmp_path / "train" / "a cat" / "notes.txt")
    reader = open_reader(str(tmp_path), "train")
    assert list(reader.class_names) == ["a cat", "b dog"] and len(reader) == 3
    for index, name in enumerate(["a cat/3.png", "b dog/1.png", "b dog/2.PNG"]):
        image, label = reader[index]
        np.testing.assert_array_equal(image, Image.open(tmp_path / "train" / name))
        assert label == int("dog" in name)


def test_file_whose_name_is_not_utf_8_is_read(tmp_path):
    write_images(tmp_path, {"cat": ["1.png"]})
    folder = tmp_path / "train" / "cat"
    try:
        (folder / "1.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    except OSError as error:
        pytest.skip(f"The file system takes UTF-8 alone: {error}")
    image, label = open_reader(str(tmp_path), "train")[0]
    assert image.shape == (12, 17, 3) and label == 0


def test_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"no folder val or validation in .*folder of images"):
        open_reader(str(tmp_path / "nowhere"), "validation")


def test_folder_without_classes_says_what_is_expected(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="images of every class into one"):
        open_reader(str(tmp_path), "train")


def test_empty_class_folder_is_named(tmp_path):
    write_images(tmp_path, {"cat": ["1.png"], "dog": []})
    with pytest.raises(UserError, match=r"train/dog has no images .*delete the folder, or fill it"):
        open_reader(str(tmp_path), "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_is_named(tmp_path, workers):
    write_images(tmp_path, {"cat": [f"{index}.jpg" for index in range(4)]})
    corrupt = tmp_path / "train" / "cat" / "2.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    reader = open_reader(str(tmp_path), "train")
    with pytest.raises(
        UserError, match=r"Cannot decode .*cat/2.jpg \(.*replace the file, or leave"
    ):
        list(batches_of(reader, range(2), workers=workers))


def test_photograph_is_upright_as_the_camera_says(tmp_path):
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8))
    pixels = np.asarray(small.resize((56, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by a quarter, clockwise.
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    expected = np.rot90(pixels, -1).astype(int)
    assert decode(tmp_path / "turned.jpg").shape == (56, 40, 3)
    assert np.abs(decode(tmp_path / "turned.jpg") - expected).mean() < 8


def test_images_of_other_modes_become_red_green_and_blue_of_8_bits(tmp_path):
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (5, 7), np.uint8)
    wide = grey.astype(np.uint16) * 256 + random.integers(0, 256, (5, 7))
    colours = random.integers(0, 256, (5, 7, 4), np.uint8)
    for name, array in dict(grey=grey, wide=wide.astype(np.uint16), alpha=colours).items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    for name in ("grey", "wide"):
        np.testing.assert_array_equal(decode(tmp_path / f"{name}.png"), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(decode(tmp_path / "alpha.png"), colours[..., :3])
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="pixels of 32 bits, mode F"):
        decode(tmp_path / "float.tiff")


def test_images_with_palettes_or_inks_have_their_colours(tmp_path):
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (16, 3), np.uint8)
    places = random.integers(0, 16, (5, 7), np.uint8)
    palette = Image.fromarray(places, "P")
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "palette.png", transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(decode(tmp_path / "palette.png"), colours[places])
    inks = Image.fromarray(random.integers(0, 256, (5, 7, 4), np.uint8), "CMYK")
    inks.save(tmp_path / "inks.tiff")
    c, m, y, k = np.moveaxis(np.asarray(inks, float) / 255, -1, 0)
    expected = 255 * (1 - np.stack([c, m, y], -1)) * (1 - k)[..., None]
    assert np.abs(decode(tmp_path / "inks.tiff") - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "avif"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Of Pillow, about damaged tags of TIFF.
def test_damaged_image_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    try:
        Image.fromarray(pixels).save(path)
    except (KeyError, ValueError, OSError) as error:
        pytest.skip(f"Pillow does not write {suffix} here: {error}")
    whole = path.read_bytes()
    for length in range(0, len(whole) // 2, 31):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"Cannot decode .*cut.{suffix} \(.*replace the file"):
            decode(path)
    for place in range(300):
        with contextlib.suppress(UserError):  # One byte may not matter.
            assert decode(whole[:place] + b"\0" + whole[place + 1 :]).dtype == np.uint8


@pytest.mark.parametrize(
    ("place", "byte"), [(17, 0), (41, 13), (43, 1)], ids=["tag", "text", "number"]
)
def test_image_with_damaged_exif_is_named(tmp_path, place, byte):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Maker", 72.5
    whole = exif.tobytes()
    path = tmp_path / "turned.jpg"
    damaged = whole[:place] + bytes([byte]) + whole[place + 1 :]
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(path, exif=damaged)
    with pytest.raises(UserError, match=r"Cannot decode .*turned.jpg \(.*replace the file"):
        decode(path)


def test_packed_images_are_those_of_the_folder(tmp_path):
    write_images(tmp_path / "images", {"cat": ["1.png", "2.png"], "dog": ["3.png"]})
    pack(tmp_path / "images", tmp_path / "packed", files=2)
    for split in SPLITS:
        folder = open_reader(str(tmp_path / "images"), split)
        packed = open_reader(f"arrayrecord:{tmp_path / 'packed'}", split)
        assert list(packed.class_names) == ["cat", "dog"] and len(packed) == 3
        assert images_by_class(packed) == images_by_class(folder)


def test_names_of_classes_that_are_not_utf_8_are_packed():
    names = ["cat", os.fsdecode(b"caf\xe9"), "separated\u2028lines"]
    assert class_names(class_lines(names)) == names


@pytest.mark.parametrize("part", ["train", "val"])
def test_splits_of_other_classes_are_not_packed(tmp_path, part):
    write_images(tmp_path / "images", {"ant": ["1.png"], "cat": ["2.png"], "dog": ["3.png"]})
    shutil.rmtree(tmp_path / "images" / part / "cat")
    with pytest.raises(UserError, match=r"images of the class cat, and the split .* has none"):
        pack(tmp_path / "images", tmp_path / "packed", files=1)
    assert not (tmp_path / "packed").exists()


def images_by_class(reader) -> set[tuple[int, bytes]]:
    return {
        (label, image.tobytes()) for image, label in map(reader.__getitem__, range(len(reader)))
    }


def test_dataset_of_tfds_is_read_with_its_classes(monkeypatch):
    """With a stand-in for the package, which brings much that nothing else here needs."""
    examples = [{"image": np.full((4, 5, 1), 7, np.uint8), "label": np.int64(1)}]
    builder = SimpleNamespace(
        info=SimpleNamespace(
            splits={"train": None, "test": None},
            features={"label": SimpleNamespace(names=["cat", "dog"])},
        ),
        as_data_source=lambda split: {"test": examples}[split],
    )
    stand_in = SimpleNamespace(builder=lambda name: {"pets": builder}[name])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    reader = open_reader("tfds:pets", "validation")
    image, label = reader[0]
    assert len(reader) == 1 and label == 1 and reader.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(image, np.full((4, 5, 3), 7))
    del builder.info.splits["train"]
    with pytest.raises(UserError, match="has no split train, it has test"):
        open_reader("tfds:pets", "train")


def test_part_of_the_packed_files_is_refused(tmp_path):
    write_images(tmp_path / "images", {"cat": ["1.png", "2.png"], "dog": ["3.png"]})
    pack(tmp_path / "images", tmp_path / "packed", files=3)
    (tmp_path / "packed" / "train-00001-of-00003.arrayrecord").unlink()
    with pytest.raises(UserError, match=r"^1 of 3 files .*them train-00001-of-00003\.arrayrecord"):
        open_reader(f"arrayrecord:{tmp_path / 'packed'}", "train")
    assert len(open_reader(f"arrayrecord:{tmp_path / 'packed'}", "validation")) == 3


def test_missing_packed_images_say_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"no train-\*-of-\*.arrayrecord .*pack"):
        open_reader(f"arrayrecord:{tmp_path}", "train")


def test_missing_tfds_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        open_reader("tfds:mnist", "train")
