# SPDX-License-Identifier: MIT
"""Networks with the names of published ones compute, layer by layer, what they compute in PyTorch."""

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="compares with PyTorch")
from jax_dcn.interop.torch_weights import convolution, read_state_dict, to_flax_and_report  # noqa: E402
from tests.interop import torch_networks, torch_resnet  # noqa: E402
from tests.interop.torch_networks import Layer  # noqa: E402


def conv(channels, features, **options):
    return Layer("conv", channels, features, tuple(options.items()))


def deformable(kind, channels, features, **options):
    return Layer(kind, channels, features, tuple(options.items()))


def plain(kind, features):
    return Layer(kind, features, features)


NETWORKS = {
    "centernet_dla": {
        "base.base_layer.0": conv(3, 8, bias=False),
        "base.base_layer.1": plain("batch_norm", 8),
        "base.level2.tree1.conv1": conv(8, 8, bias=False),
        "base.level2.tree1.bn1": plain("batch_norm", 8),
        "base.level2.root.conv": conv(8, 6, size=1, bias=False),
        "base.level2.project.0": conv(6, 8, size=1, bias=False),
        "dla_up.ida_0.proj_1.conv": deformable("dcnv2", 8, 6, bias=True),
        "dla_up.ida_0.proj_1.actf.0": plain("batch_norm", 6),
        "dla_up.ida_0.up_1": plain("upsample", 6),
        "dla_up.ida_0.node_1.conv": deformable("dcnv2", 6, 6, bias=True),
        "dla_up.ida_0.node_1.actf.0": plain("batch_norm", 6),
        "dla_up.ida_1.proj_1.conv": deformable("dcnv2", 6, 4, bias=True),
        "ida_up.proj_1.conv": deformable("dcnv2", 4, 6, bias=True),
        "hm.0": conv(6, 5),
        "hm.1": plain("relu", 5),
        "hm.2": conv(5, 3, size=1),
    },
    "edvr": {
        "conv_first": conv(3, 8),
        "feature_extraction.0.conv1": conv(8, 8),
        "feature_extraction.0.conv2": conv(8, 8),
        "feature_extraction.1.conv1": conv(8, 8),
        "conv_l2_1": conv(8, 8),
        "conv_l2_2": conv(8, 8),
        "conv_l3_1": conv(8, 8),
        "pcd_align.offset_conv1.l3": conv(8, 8),
        "pcd_align.dcn_pack.l3": deformable("guided", 8, 8, groups=2, depth=1),
        "pcd_align.feat_conv.l2": conv(8, 8),
        "pcd_align.dcn_pack.l2": deformable("guided", 8, 8, groups=2, depth=1),
        "pcd_align.cas_dcnpack": deformable("guided", 8, 8, groups=2, depth=1),
        "fusion.spatial_attn_l1": conv(8, 8),
        "upconv1": conv(8, 8),
        "conv_last": conv(8, 3),
    },
    "basicvsr_plus_plus": {
        "feat_extract.main.0": conv(3, 6),
        "feat_extract.main.1": plain("relu", 6),
        "feat_extract.main.2.0.conv1": conv(6, 6),
        "feat_extract.main.2.1.conv1": conv(6, 6),
        "deform_align.backward_1": deformable("guided", 6, 6, groups=3, depth=4),
        "deform_align.forward_1": deformable("guided", 6, 6, groups=3, depth=4),
        "deform_align.backward_2": deformable("guided", 6, 6, groups=3, depth=4),
        "backbone.backward_1.main.0": conv(6, 6),
        "upsample1.upsample_conv": conv(6, 6),
        "conv_hr": conv(6, 3),
    },
    "reppoints": {
        "backbone.conv1": conv(3, 8, size=7, bias=False),
        "backbone.layer2.0.conv2": deformable("mmcv", 8, 8, modulated=False),
        "neck.lateral_convs.0.conv": conv(8, 20, size=1),
        "bbox_head.cls_convs.0.conv": conv(20, 20, bias=False),
        "bbox_head.cls_convs.0.gn": plain("group_norm", 20),
        "bbox_head.reppoints_pts_init_conv": conv(20, 20),
        "bbox_head.reppoints_cls_conv": deformable("without_branch", 20, 18),
        "bbox_head.reppoints_pts_refine_conv": deformable("without_branch", 18, 20),
        "bbox_head.reppoints_cls_out": conv(20, 7, size=1),
    },
    "mmdetection": {
        "backbone.layer3.0.conv2": deformable("mmcv", 3, 8, deform_groups=1),
        "backbone.layer3.0.bn2": plain("batch_norm", 8),
        "backbone.layer3.1.conv2": deformable("mmcv", 8, 8, deform_groups=4),
        "neck.fpn_convs.0.conv": conv(8, 6),
        "bbox_head.cls_convs.0.conv": conv(6, 6, bias=False),
        "bbox_head.cls_convs.0.gn": plain("group_norm", 6),
        "bbox_head.scales.0": plain("scale", 6),
        "bbox_head.scales.1": plain("scale", 6),
        "bbox_head.conv_reg": conv(6, 4),
    },
    "separate_branches": {
        "conv1": conv(3, 6),
        "conv2": deformable("separate", 6, 6),
        "layers.0.conv": deformable("separate", 6, 5),
        "fc": conv(5, 3, size=1),
    },
}

CONTAINERS = {
    "centernet_dla": "state_dict",
    "edvr": "params_ema",
    "basicvsr_plus_plus": "params",
    "reppoints": "model_state_dict",
    "mmdetection": "state_dict_ema",
    "separate_branches": "net",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_from_a_file_computes_what_it_computes_in_torch(name, tmp_path):
    layers = NETWORKS[name]
    theirs = torch_resnet.randomize(torch_networks.TorchNetwork(layers))
    container = CONTAINERS[name]
    torch.save({container: theirs.state_dict(), "epoch": 7}, tmp_path / "w.pth")
    ours = nnx.eval_shape(lambda: torch_networks.FlaxNetwork(layers))
    weights = read_state_dict(tmp_path / "w.pth")
    flipped = lambda weight: convolution(weight)[::-1, ::-1]
    convert = {r"\bup_\d\.kernel$": flipped} if name == "centernet_dla" else None
    variables, report = to_flax_and_report(weights, ours, convert=convert)
    assert set(report.loaded_keys) == {n for n in weights if "num_batches" not in n}
    graph = nnx.split(ours)[0]
    compute = jax.jit(lambda variables, x: nnx.merge(graph, variables).results(x))
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 9)).astype(np.float32)
    expected = theirs.results(torch.tensor(x))
    results = compute(variables, x.transpose(0, 2, 3, 1))
    for part, y, e in zip(layers, results, expected, strict=True):
        assert np.ptp(e) > 1e-3, part
        np.testing.assert_allclose(y, e, rtol=0, atol=2e-5 * np.abs(e).max(), err_msg=part)


def test_upsampling_without_its_direction_is_refused():
    layers = NETWORKS["centernet_dla"]
    weights = torch_networks.TorchNetwork(layers).state_dict()
    ours = nnx.eval_shape(lambda: torch_networks.FlaxNetwork(layers))
    for like in (ours, nnx.state(ours)):
        with pytest.raises(ValueError, match=r"1 uncertain:\n  dla_up\.ida_0\.up_1\.weight: "):
            to_flax_and_report(weights, like)


def test_masks_of_separate_branches_reach_two():
    weights = torch_networks.SeparateBranches(6, 5).state_dict()
    layer = torch_networks.DeformConv(6, 5, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"modulator_conv.weight: .*mask_scale=2.0, not 1.0"):
        to_flax_and_report(weights, layer)
