# SPDX-License-Identifier: MIT
"""Where images come from: everything that can be read is a `Reader`."""

import io
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from examples.imagenet.errors import UserError

SPLITS = ("train", "validation")
_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_GENERATED = {"train": 1000, "validation": 100}
# Pillow raises errors of Python's own for damaged files, another one for each format, and the last
# three for damaged EXIF.
_DAMAGES = (
    *(OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError),
    *(struct.error, TypeError, AttributeError),
)
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


class Reader(Protocol):
    """Labelled images in a fixed order, any of which can be read at any time, by any process."""

    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image `[H, W, 3]` of uint8, and the index of its class."""


def open_reader(data: str, split: str) -> Reader:
    """The `split`, one of `SPLITS`, of what `data` names.

    Args:
      data: A folder with `train` and `val`, each with a folder of images for every class; or
        `arrayrecord:FOLDER`, `tfds:NAME`, `digits` or `generated`.
      split: "train" or "validation".

    Raises:
      UserError: if it is not there, or holds no images.
    """
    kind, _, rest = data.partition(":")
    openers: dict[str, Callable[[str, str], Reader]] = {
        "arrayrecord": ArrayRecordReader,
        "tfds": TfdsReader,
        "digits": lambda _, split: DigitsReader(split),
        "generated": lambda _, split: GeneratedReader(split),
    }
    if kind in openers and (rest or kind in ("digits", "generated")):
        return openers[kind](rest, split)
    return FolderReader(data, split)


def decode(data: str | pathlib.Path | bytes, name: str = "") -> np.ndarray:
    """The image in a file, or in the bytes of one called `name`, as `[H, W, 3]` of uint8.

    The image is upright, as the camera's orientation in the file says; of 16 bits the upper 8 are
    kept, and transparency is ignored: as OpenCV reads images.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            upright = _eight_bits(ImageOps.exif_transpose(image))
            upright.info.pop("transparency", None)  # Pillow warns of what a palette would lose.
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"There is no image {data}: check the path.") from error
    except _DAMAGES as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"Cannot decode {name or data} ({reason}): replace the file, or leave the image out; "
            "then run the same command again."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits, mode {image.mode}")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


class FolderReader:
    """A folder with a folder of images for every class, as ImageNet is kept."""

    def __init__(self, folder: str, split: str):
        root = _split_folder(pathlib.Path(folder), split)
        classes = sorted(entry for entry in root.iterdir() if entry.is_dir())
        if not classes:
            raise UserError(f"{root} has no folders: put the images of every class into one.")
        files = [_images_in(folder) for folder in classes]
        self.class_names = [folder.name for folder in classes]
        self._root = root
        # Arrays of bytes, not lists of objects: every worker process gets a copy.
        self._files = np.concatenate([np.array(names, np.bytes_) for names in files])
        self._labels = np.repeat(np.arange(len(files)), [len(names) for names in files])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.file(index)
        return decode(path), label

    def file(self, index: int) -> tuple[pathlib.Path, int]:
        """The file of an image, and the index of its class."""
        label = int(self._labels[index])
        return self._root / self.class_names[label] / os.fsdecode(self._files[index]), label


def _split_folder(folder: pathlib.Path, split: str) -> pathlib.Path:
    found = [folder / name for name in _FOLDERS[split] if (folder / name).is_dir()]
    if not found:
        names = " or ".join(_FOLDERS[split])
        raise UserError(
            f"There is no folder {names} in {folder.resolve()}: --data takes a folder that has it, "
            "with a folder of images for every class."
        )
    return found[0]


def _images_in(folder: pathlib.Path) -> list[bytes]:
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not names:
        raise UserError(
            f"{folder} has no images ({', '.join(_SUFFIXES)}): delete the folder, or fill it."
        )
    return [os.fsencode(name) for name in names]


def class_lines(names: Sequence[str]) -> bytes:
    """The names of folders, which need not be UTF-8, as lines."""
    return b"".join(os.fsencode(name) + b"\n" for name in names)


def class_names(lines: bytes) -> list[str]:
    """The names in lines of `class_lines`."""
    return [os.fsdecode(line) for line in lines.splitlines()]


class ArrayRecordReader:
    """What `python -m examples.imagenet pack` wrote: few large files instead of many small ones."""

    def __init__(self, folder: str, split: str):
        import grain

        root = pathlib.Path(folder)
        paths = sorted(root.glob(f"{split}-*-of-*.arrayrecord"))
        if not paths:
            raise UserError(
                f"There is no {split}-*-of-*.arrayrecord in {root.resolve()}: write it with "
                f"`python -m examples.imagenet pack IMAGES {folder}`."
            )
        _check_whole(paths, split)
        self.class_names = class_names((root / "classes.txt").read_bytes())
        self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label, image = unpack_record(self._records[index])
        return decode(image, f"record {index}"), label


def _check_whole(paths: Sequence[pathlib.Path], split: str) -> None:
    """Refuses a part of the files of a split: training would take them for a smaller data set."""
    count = int(paths[0].stem.rpartition("-of-")[2])
    names = [f"{split}-{index:05}-of-{count:05}.arrayrecord" for index in range(count)]
    lost = sorted(set(names) - {path.name for path in paths})
    if lost:
        raise UserError(
            f"{len(lost)} of {count} files are not in {paths[0].parent.resolve()}, the first of "
            f"them {lost[0]}: copy all of them, or pack the images again."
        )


def pack_record(label: int, image: bytes) -> bytes:
    """A record: the class in four bytes, little-endian, then the image file as it is."""
    return label.to_bytes(4, "little") + image


def unpack_record(record: bytes) -> tuple[int, bytes]:
    """What `pack_record` was given."""
    return int.from_bytes(record[:4], "little"), record[4:]


class TfdsReader:
    """A dataset of TensorFlow Datasets, read without TensorFlow."""

    def __init__(self, name: str, split: str):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f"--data tfds:{name} needs a package: pip install tensorflow-datasets."
            ) from error
        builder = tfds.builder(name)
        available = list(builder.info.splits)
        wanted = ("validation", "test") if split == "validation" else (split,)
        names = [name for name in wanted if name in available]
        if not names:
            raise UserError(f"tfds:{name} has no split {split}, it has {', '.join(available)}.")
        self.class_names = builder.info.features["label"].names
        self._source = builder.as_data_source(split=names[0])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example = self._source[index]
        image = np.asarray(example["image"])
        return np.broadcast_to(image, (*image.shape[:2], 3)), int(example["label"])


class DigitsReader:
    """The 1797 scans of handwritten digits that come with scikit-learn; a fifth is held out."""

    def __init__(self, split: str):
        from sklearn.datasets import load_digits

        digits = load_digits()
        held_out = np.arange(len(digits.target)) % 5 == 0
        chosen = held_out if split == "validation" else ~held_out
        self.class_names = [str(digit) for digit in range(10)]
        self._images = (digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        # Magnified, so that crops and tests of real images' size have something to choose from.
        image = Image.fromarray(self._images[index]).resize((32, 32), Image.Resampling.BICUBIC)
        return np.asarray(image.convert("RGB")), int(self._labels[index])


class GeneratedReader:
    """Ten classes of coloured noise, made on the fly: to see that everything runs, and how fast."""

    def __init__(self, split: str):
        self.class_names = [f"noise {index}" for index in range(10)]
        self._split = split

    def __len__(self) -> int:
        return _GENERATED[self._split]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng([SPLITS.index(self._split), index])
        label = index % len(self.class_names)
        colour = np.random.default_rng(label).integers(64, 192, 3)
        image = colour + random.integers(-64, 64, (56, 48, 3))
        return image.astype(np.uint8), label
