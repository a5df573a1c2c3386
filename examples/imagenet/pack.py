# SPDX-License-Identifier: MIT
"""Packs folders of images into few large files, which network disks read faster."""

import pathlib

import tyro
from tqdm import tqdm

from examples.imagenet.errors import UserError, check_option
from examples.imagenet.readers import SPLITS, FolderReader, class_lines, pack_record


def pack(
    images: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    files: int = 64,
) -> None:
    """Packs folders of images into ArrayRecord files, for `--data arrayrecord:OUTPUT`.

    Args:
      images: Folder with train/ and val/, each with a folder of images for every class.
      output: Folder to fill.
      files: How many files the training images go into; the validation images go into one.
    """
    check_option("files", files, 1)
    readers = {split: FolderReader(str(images), split) for split in SPLITS}
    _check_same_classes(readers)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: choose another folder.")
    part = _empty_folder(pathlib.Path(f"{output}.part"))
    (part / "classes.txt").write_bytes(class_lines(readers["train"].class_names))
    for split, count in (("train", files), ("validation", 1)):
        for index in range(count):
            path = part / f"{split}-{index:05}-of-{count:05}.arrayrecord"
            _pack_file(readers[split], range(index, len(readers[split]), count), path)
    part.rename(output)
    print(f"Wrote {output}.")


def _check_same_classes(readers: dict[str, FolderReader]) -> None:
    """Refuses splits of other classes: labels are numbers in the one list of the classes' names."""
    train, validation = (readers[split].class_names for split in SPLITS)
    odd = sorted(set(train) ^ set(validation))
    if odd:
        there, absent = SPLITS if odd[0] in train else reversed(SPLITS)
        raise UserError(
            f"The split {there} has images of the class {odd[0]}, and the split {absent} has none: "
            "give both splits a folder of images for every class."
        )


def _empty_folder(part: pathlib.Path) -> pathlib.Path:
    """The folder, without the files that an interrupted command left there."""
    part.mkdir(parents=True, exist_ok=True)
    for path in part.glob("*.arrayrecord"):
        path.unlink()
    return part


def _pack_file(reader: FolderReader, indices: range, path: pathlib.Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # One record to a group: images are read in random order.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in tqdm(indices, path.name, unit=" images", unit_scale=True, disable=None):
        image, label = reader.file(index)
        writer.write(pack_record(label, image.read_bytes()))
    writer.close()
