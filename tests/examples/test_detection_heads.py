# SPDX-License-Identifier: MIT
"""Mask and Cascade R-CNN: heads, pasted masks, and what the command `stages` writes of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from examples.detection.__main__ import main
from examples.detection.boxes import CONVENTIONS, clip, decode
from examples.detection.detect import BOX_DEVIATIONS, Images, Proposals, refine
from examples.detection.masks import paste
from examples.detection.models import MaskHead
from jax_dcn.interop.torch_weights import to_flax
from tests.examples.small_detectors import CLASSES, FLAGS, SMALL, small_detector

RULE = CONVENTIONS["mmdet3"]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def stages_of(image, folder, model, *options) -> dict:
    save_file(
        small_detector(dataclasses.replace(SMALL, model=model)), folder / "weights.safetensors"
    )
    files = [folder / "weights.safetensors", image, folder / "stages.npz"]
    arguments = ["stages", *map(str, files), "--model", model, *FLAGS, "--no-resize", *options]
    assert main(arguments) == 0
    with np.load(folder / "stages.npz") as stages:
        return dict(stages)


def test_stages_of_mask_rcnn_have_a_boolean_mask_of_the_image_for_every_detection(image, tmp_path):
    stages = stages_of(image, tmp_path, "mask", "--score-threshold", "0.0")
    count = len(stages["boxes"])
    assert count > 0
    assert stages["masks"].shape == (count, 75, 90)
    assert stages["masks"].dtype == bool
    assert stages["input"].shape == (3, 96, 96)
    assert [stages[f"C{level}"].shape for level in (2, 5)] == [(8, 24, 24), (64, 3, 3)]
    assert stages["P6"].shape == (8, 2, 2) and stages["rpn_reg3"].shape == (12, 12, 12)
    for mask, (x1, y1, x2, y2) in zip(stages["masks"], stages["boxes"], strict=True):
        rows, columns = np.nonzero(mask)
        assert np.all((rows + 1 >= y1) & (rows <= y2) & (columns + 1 >= x1) & (columns <= x2))


def test_cascade_refines_boxes_head_by_head_and_averages_logits():
    architecture = dataclasses.replace(SMALL, model="cascade")
    detector = architecture.build(CLASSES, seed=3)
    random = np.random.default_rng(0)
    pyramid = [
        jnp.asarray(random.normal(size=(1, n, n, 8)), jnp.float32) for n in (24, 12, 6, 3, 2)
    ]
    corner = random.uniform(0, 40, (5, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + 30], 1)[None], jnp.float32)
    valid, size = jnp.ones((1, 5), bool), jnp.asarray([[75.0, 90.0]], jnp.float32)
    for head in detector.roi_head.box_heads:  # Large enough to move boxes.
        head.fc_reg.kernel[...] = jnp.asarray(random.normal(size=(5, 4)), jnp.float32)
    proposals = Proposals(boxes, jnp.ones((1, 5), jnp.float32), valid)
    images = Images(jnp.zeros((1, 96, 96, 3)), size, jnp.ones((1, 2), jnp.float32))
    last, logits, deltas = nnx.jit(refine)(detector, pyramid, proposals, images)

    every_logits = []
    for stage, head in enumerate(detector.roi_head.box_heads):
        if stage:
            boxes = decode(boxes, expected_deltas[None, :, 0], BOX_DEVIATIONS[stage - 1], RULE)  # noqa: F821
            boxes = clip(boxes, size[0], RULE)
        pooled = nnx.jit(detector.roi_head.bbox_roi_extractor)(pyramid, boxes, valid)
        found, expected_deltas = head(pooled)
        every_logits.append(found)
    np.testing.assert_allclose(last, boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(logits[0], np.mean(every_logits, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(deltas[0], expected_deltas, rtol=1e-4, atol=1e-5)
    assert np.abs(last - proposals.boxes).max() > 1


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
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    masks = random.uniform(size=(6, 28, 28)).astype(np.float32)
    corner = random.uniform(-5, 30, (6, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 50, (6, 2))], 1).astype(np.float32)
    y = (torch.arange(47) + 0.5)[None]
    x = (torch.arange(61) + 0.5)[None]
    x1, y1, x2, y2 = torch.tensor(boxes).T[:, :, None]
    x, y = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([x[:, None].expand(6, 47, 61), y[:, :, None].expand(6, 47, 61)], -1)
    sampled = torch.nn.functional.grid_sample(
        torch.tensor(masks)[:, None], grid, align_corners=False
    )[:, 0].numpy()
    found = paste(masks, boxes, (47, 61), RULE)
    clear = np.abs(sampled - 0.5) > 1e-5
    assert found.any() and clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], (sampled >= 0.5)[clear])
