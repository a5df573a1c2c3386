# SPDX-License-Identifier: MIT
"""Faster R-CNN computes what mmdetection computes with the same weights; see detection/README.md."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from flax import nnx
from safetensors.numpy import save_file

from examples.detection.__main__ import main
from examples.detection.commands.weights import load_published
from examples.detection.model.architecture import Architecture
from examples.detection.model.boxes import CONVENTIONS
from examples.detection.model.detect import Images, Proposals, candidates, classify
from tests.examples.published_weights import FOLDER, published_weights
from tests.examples.same_boxes import same

RULE = CONVENTIONS["mmdet3"]
PHOTOGRAPH = pathlib.Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
SIZE = (427, 640)

# What is kept of mmdetection's arrays, where it is not [::16, ::4, ::4] of features and pixels.
KEPT = {
    "input": np.s_[:, ::32, ::32],
    "C2": np.s_[::16, ::8, ::8],
    "C3": np.s_[::16, ::8, ::8],
    "C4": np.s_[::32, ::4, ::4],
    "C5": np.s_[::32, ::4, ::4],
    "P2": np.s_[::16, ::8, ::8],
    "rpn_cls2": np.s_[:, ::8, ::8],
    "rpn_reg2": np.s_[:, ::8, ::8],
} | {f"rpn_{kind}{level}": np.s_[:, ::4, ::4] for kind in ("cls", "reg") for level in range(3, 7)}


@pytest.fixture(scope="module", params=["modulated", "deformable"])
def case(request, tmp_path_factory):
    """The kind of convolution, a file of its weights, what we compute, and what mmdetection does."""
    conv = request.param
    folder = tmp_path_factory.mktemp(conv)
    weights, output = folder / "weights.safetensors", folder / "stages.npz"
    save_file(published_weights(modulated=conv == "modulated"), weights)
    arguments = ["stages", weights, PHOTOGRAPH, output, "--conv", conv, "--no-resize"]
    assert main(list(map(str, arguments))) == 0
    name = "faster_mdconv" if conv == "modulated" else "faster_dconv"
    with np.load(output) as ours, np.load(FOLDER / f"{name}.npz") as theirs:
        yield conv, weights, dict(ours), dict(theirs)
    weights.unlink()


def test_maps_of_every_stage_equal_mmdetections(case):
    _, _, ours, theirs = case
    names = [f"C{level}" for level in range(2, 6)] + [f"P{level}" for level in range(2, 7)]
    names += [f"rpn_{kind}{level}" for kind in ("cls", "reg") for level in range(2, 7)]
    # XLA multiplies by the reciprocals of the standard deviations: the last bit may differ.
    np.testing.assert_allclose(ours["input"][KEPT["input"]], theirs["input"], rtol=2**-22)
    for name in names:
        deviation = ours[name].std()
        kept = ours[name][KEPT.get(name, np.s_[::16, ::4, ::4])]
        np.testing.assert_allclose(kept, theirs[name], rtol=0, atol=1e-4 * deviation, err_msg=name)
        if name.startswith("C"):
            np.testing.assert_allclose(deviation, theirs[f"{name}_std"], rtol=1e-5)


def test_proposals_of_mmdetection_are_among_the_boxes_before_suppression(case):
    _, _, ours, theirs = case
    rpn = [
        tuple(
            jnp.moveaxis(jnp.asarray(ours[f"rpn_{kind}{level}"]), 0, -1) for kind in ("cls", "reg")
        )
        for level in range(2, 7)
    ]
    boxes, scores, _ = candidates(rpn, jnp.asarray(SIZE, jnp.float32), RULE)
    found = same(theirs["proposals"], theirs["proposal_scores"], boxes, scores)
    assert found.any(axis=1).sum() >= 998


def test_detections_from_the_same_proposals_equal_mmdetections(case):
    conv, weights, ours, theirs = case
    detector = load_published(weights, Architecture(conv=conv)).detector
    pyramid = [jnp.moveaxis(jnp.asarray(ours[f"P{level}"]), 0, -1)[None] for level in range(2, 7)]
    proposals = Proposals(
        jnp.asarray(theirs["proposals"])[None],
        jnp.asarray(theirs["proposal_scores"])[None],
        jnp.ones((1, 1000), bool),
    )
    images = Images(
        jnp.zeros((1, 448, 640, 3), jnp.float32),
        jnp.asarray([SIZE], jnp.float32),
        jnp.ones((1, 2), jnp.float32),
    )
    found = nnx.jit(classify)(detector, pyramid, proposals, images, 0.05)
    boxes, scores, labels = (np.asarray(array[0]) for array in found[:3])
    agree = same(theirs["boxes"], theirs["scores"], boxes, scores)
    agree &= theirs["labels"][:, None] == labels
    assert found.valid.all()
    assert agree.any(axis=1).all()


# Among anchors of equal scores (more than 900 of the 1000 proposals score above 0.99, where scores
# are multiples of 2**-24) the order decides which suppresses the other. mmdetection's sort leaves
# the order open: other proposals differ by that alone, as the two tests above show.
def test_most_proposals_and_detections_equal_mmdetections_whatever_the_order_of_equal_scores(case):
    _, _, ours, theirs = case
    proposals = same(
        theirs["proposals"], theirs["proposal_scores"], ours["proposals"], ours["proposal_scores"]
    )
    assert proposals.any(axis=1).mean() > 0.9
    detections = same(theirs["boxes"], theirs["scores"], ours["boxes"], ours["scores"])
    detections &= theirs["labels"][:, None] == ours["labels"]
    assert detections.any(axis=1).mean() > 0.9


def teardown_module() -> None:
    jax.clear_caches()
