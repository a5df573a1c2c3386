# SPDX-License-Identifier: MIT
"""Mask and Cascade R-CNN: heads, pasted masks, and what the command `stages` writes of them."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from examples.detection.__main__ import main
from examples.detection.data.masks import paste
from examples.detection.model.architecture import Architecture
from examples.detection.model.boxes import CONVENTIONS
from examples.detection.model.networks import MaskHead
from jax_dcn.interop.torch_weights import to_flax
from tests.examples.published_weights import FOLDER, weight
from tests.examples.same_boxes import same
from tests.examples.small_detectors import arrays_of_detector

RULE = CONVENTIONS["mmdet3"]
PHOTOGRAPH = pathlib.Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
ARCHITECTURES = {
    "mask_mdconv": dict(model="mask", conv="modulated"),
    "cascade_dconv": dict(model="cascade", conv="deformable"),
}
SIZES = dict(width=8, features=16, hidden=64, offset_groups=2)
CLASSES = 8


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    """What we compute and what mmdetection computes for a part of a photograph."""
    folder = tmp_path_factory.mktemp(request.param)
    architecture = Architecture(**ARCHITECTURES[request.param], **SIZES)
    growth = 0.6 if architecture.conv == "modulated" else 0.5
    weights = arrays_of_detector(
        architecture, CLASSES, lambda name, shape: weight(name, shape, growth)
    )
    save_file(weights, folder / "weights.safetensors")
    pixels = np.asarray(Image.open(PHOTOGRAPH))[::4, ::4]
    Image.fromarray(pixels).save(folder / "image.png")
    files = [folder / name for name in ("weights.safetensors", "image.png", "stages.npz")]
    options = {**ARCHITECTURES[request.param], **SIZES}
    flags = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    assert main(["stages", *map(str, files), *flags, "--no-resize"]) == 0
    with np.load(folder / "stages.npz") as ours, np.load(FOLDER / f"{request.param}.npz") as theirs:
        return dict(ours), dict(theirs)


def test_stages_of_mask_and_cascade_rcnn_equal_mmdetections(case):
    ours, theirs = case
    assert ours.keys() == {name for name in theirs if not name.endswith("_std")} | {"input"}
    for name in [name for name in theirs if name[0] in "CP" or name.startswith("rpn")]:
        if name.endswith("_std"):
            np.testing.assert_allclose(ours[name[:2]].std(), theirs[name], rtol=1e-5)
            continue
        kept = np.s_[:, ::4, ::4] if name.startswith("rpn") else np.s_[::8, ::4, ::4]
        tolerance = 3e-4 * ours[name].std()  # rounding differs between processors
        np.testing.assert_allclose(ours[name][kept], theirs[name], rtol=0, atol=tolerance)


def test_proposals_and_detections_of_mask_and_cascade_rcnn_equal_mmdetections(case):
    ours, theirs = case
    proposals = same(
        theirs["proposals"], theirs["proposal_scores"], ours["proposals"], ours["proposal_scores"]
    )
    assert proposals.any(axis=1).mean() > 0.995
    assert len(ours["proposals"]) == len(theirs["proposals"])
    pairs = matches(ours, theirs)
    assert pairs.any(axis=1).sum() >= 98
    if "masks" in theirs:
        assert_same_masks(ours["masks"], theirs["masks"], pairs)


def matches(ours: dict, theirs: dict) -> np.ndarray:
    found = same(theirs["boxes"], theirs["scores"], ours["boxes"], ours["scores"])
    return found & (theirs["labels"][:, None] == ours["labels"])


def assert_same_masks(ours: np.ndarray, packed: np.ndarray, pairs: np.ndarray) -> None:
    assert ours.shape == (100, 107, 160) and ours.dtype == bool
    rows, columns = np.nonzero(pairs)
    expected = np.unpackbits(packed, axis=-1).astype(bool)[rows]
    assert expected.sum(axis=(1, 2)).mean() > 100
    # A pixel whose probability is about one half may be on either side, as the processor rounds.
    different = (ours[columns] != expected).sum(axis=(1, 2))
    assert different.max() <= 7 and different.sum() < 2e-3 * expected.sum()


def test_mask_head_equals_pytorchs_layers():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = {f"convs.{index}.conv": torch.nn.Conv2d(6, 6, 3, padding=1) for index in range(4)}
    layers |= {
        "upsample": torch.nn.ConvTranspose2d(6, 6, 2, 2),
        "conv_logits": torch.nn.Conv2d(6, 3, 1),
    }
    x = torch.randn(2, 6, 5, 5)
    weights = {
        f"{name}.{kind}": getattr(layer, kind).detach().numpy()
        for name, layer in layers.items()
        for kind in ("weight", "bias")
    }
    expected = x
    for name, layer in layers.items():
        expected = layer(expected) if name == "conv_logits" else torch.relu(layer(expected))
    head = MaskHead(6, 3, nnx.Rngs(0))
    nnx.update(head, to_flax(weights, head))
    found = head(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)))
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pasted_masks_equal_pytorchs_grid_sample():
    random = np.random.default_rng(1)
    masks = random.uniform(size=(6, 28, 28)).astype(np.float32)
    corner = random.uniform(-5, 30, (6, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 50, (6, 2))], 1).astype(np.float32)
    sampled = sampled_as_in_mmdetection(masks, boxes, (47, 61))
    found = paste(masks, boxes, (47, 61), RULE)
    clear = np.abs(sampled - 0.5) > 1e-5
    assert found.any() and clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], (sampled >= 0.5)[clear])


def sampled_as_in_mmdetection(masks, boxes, size) -> np.ndarray:
    """Probabilities `[D, H, W]` around every box, positions divided by zero set to the middle."""
    torch = pytest.importorskip("torch")
    whole = np.zeros((len(masks), *size), np.float32)
    for pasted, mask, (x1, y1, x2, y2) in zip(whole, masks, torch.tensor(boxes), strict=True):
        left, top = (int(max(torch.floor(edge) - 1, 0)) for edge in (x1, y1))
        right, bottom = (
            int(min(torch.ceil(edge) + 1, length))
            for edge, length in ((x2, size[1]), (y2, size[0]))
        )
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        x, y = (torch.where(torch.isinf(axis), 0, axis) for axis in (x, y))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
        part = torch.nn.functional.grid_sample(
            torch.tensor(mask)[None, None], grid, align_corners=False
        )
        pasted[top:bottom, left:right] = part[0, 0]
    return whole


def test_masks_of_boxes_without_width_are_the_strips_that_mmdetection_draws():
    rows, columns = np.mgrid[:28, :28]
    masks = np.stack([rows < 20, columns < 16, rows + columns < 60, rows > 12, columns < 9] * 2)
    masks = masks.astype(np.float32)[:8]
    boxes = [
        [20.3, 5, 20.3, 33.6],
        [61, 5.2, 61, 33],  # At the edge of the image.
        [0, 10, 0, 40],
        [20.5, 3, 20.5, 30],  # In the middle of a pixel, which mmdetection leaves out.
        [7, 12.2, 50, 12.2],
        [9.7, 47, 30, 47],
        [33.2, 21.4, 33.2, 21.4],
        [12, 9, 12, 40],
    ]
    boxes = np.array(boxes, np.float32)
    found = paste(masks, boxes, (47, 61), RULE)
    sampled = sampled_as_in_mmdetection(masks, boxes, (47, 61))
    clear = np.abs(sampled - 0.5) > 1e-5  # NaN, beyond the threshold for neither, is not clear.
    np.testing.assert_array_equal(found[clear], (sampled >= 0.5)[clear])
    assert not found[~clear & ~(sampled >= 0.5)].any()
    assert (found.sum(axis=(1, 2)) > 0).sum() >= 6
    assert found[0, 5:20, 19:22].all() and not found[0, :, :19].any() and not found[0, :, 22:].any()
