# SPDX-License-Identifier: MIT
"""A detector sees the same pixels however an image is stored, and images of any size."""

import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from examples.detection.__main__ import main
from examples.detection.commands.stages import arrays
from examples.detection.model.boxes import CONVENTIONS
from examples.detection.model.detect import Detections, Images, Proposals, Stages
from tests.examples.small_detectors import FLAGS, SMALL, small_detector

GREY = np.random.default_rng(0).integers(0, 256, (45, 61), np.uint8)


def store(folder) -> list[str]:
    """Writes the same grey pixels in every mode, and returns the names of the files."""
    turned = Image.Exif()
    turned[0x0112] = 6  # To be turned by a quarter, clockwise.
    inks = np.zeros((*GREY.shape, 4), np.uint8)
    inks[..., 3] = 255 - GREY
    grey = Image.fromarray(GREY)
    palette = grey.convert("P")
    images = {
        "colour.png": grey.convert("RGB"),
        "grey.png": grey,
        "palette.png": palette,
        "transparent.png": Image.merge("RGBA", [grey, grey, grey, grey.rotate(180)]),
        "wide.png": Image.fromarray(GREY.astype(np.uint16) * 257),
        "inks.tiff": Image.fromarray(inks, "CMYK"),
    }
    for name, image in images.items():
        image.save(folder / name)
    palette.save(folder / "palette-transparent.png", transparency=bytes(range(256)))
    Image.fromarray(np.rot90(GREY).copy()).save(folder / "turned.png", exif=turned)
    return sorted(path.name for path in folder.iterdir())


def test_damaged_image_is_refused_before_another_is_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("examples.detection.commands.predict.load_detector", lambda *_: None)
    Image.fromarray(GREY).save(tmp_path / "sound.png")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((tmp_path / "sound.png").read_bytes()[:-900])
    words = ["predict", "run", tmp_path / "sound.png", damaged, "--output", tmp_path / "found"]
    assert main([str(word) for word in words]) == 1
    message = f"error: Cannot decode {damaged} .*: replace the file, or leave the image out; then "
    assert re.match(message, capsys.readouterr().err)
    assert not (tmp_path / "found").exists()


@pytest.fixture(scope="module")
def stages_of(tmp_path_factory):
    """What `stages` writes of an image file."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(small_detector(SMALL), folder / "weights.safetensors")

    def stages(image, *options):
        arguments = ["stages", folder / "weights.safetensors", image, folder / "stages.npz"]
        flags = [*FLAGS, "--short", 64, "--long", 96, "--candidates", 30, *options]
        assert main([str(word) for word in [*arguments, *flags]]) == 0
        with np.load(folder / "stages.npz") as written:
            return dict(written)

    return stages


def test_stages_do_not_depend_on_how_an_image_is_stored(stages_of, tmp_path):
    names = store(tmp_path)
    expected = stages_of(tmp_path / "colour.png")
    assert len(names) == 8 and len(expected["boxes"]) > 0
    for name in names:
        found = stages_of(tmp_path / name)
        assert found.keys() == expected.keys()
        for stage, array in found.items():
            np.testing.assert_array_equal(array, expected[stage], err_msg=f"{name}: {stage}")


def test_labels_of_stages_have_the_dtype_of_mmdetections():
    boxes, scores, valid = np.ones((1, 2, 4)), np.ones((1, 2)), np.array([[True, False]])
    labels = np.array([[7, 0]], np.int32)  # As of JAX in 32 bits.
    found = Detections(boxes, scores, labels, valid, None)
    computed = Stages([], [], [], Proposals(boxes, scores, valid), found)
    images = Images(np.zeros((1, 4, 4, 3)), np.ones((1, 2)), np.ones((1, 2)))
    written = arrays(computed, images, (4, 4), CONVENTIONS["mmdet3"])["labels"]
    np.testing.assert_array_equal(written, np.array([7], np.int64), strict=True)


@pytest.mark.parametrize("conventions", CONVENTIONS)
@pytest.mark.parametrize("size", [(45, 1), (1, 61)])
def test_images_of_one_line_have_finite_stages(stages_of, tmp_path, conventions, size):
    Image.fromarray(np.resize(GREY, size)).save(tmp_path / "line.png")
    found = stages_of(tmp_path / "line.png", "--conventions", conventions)
    assert all(np.all(np.isfinite(array)) for array in found.values())
    height, width = size
    low, high = found["boxes"].min(0), found["boxes"].max(0)
    assert np.all(low >= 0) and np.all(high <= [width, height, width, height])
