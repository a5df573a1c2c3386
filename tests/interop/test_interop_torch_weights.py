# SPDX-License-Identifier: MIT
"""Networks with the parameters of PyTorch networks compute what these compute."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from examples.imagenet.models import resnet
from jax_dcn import linen as dcn_linen, nnx as dcn_nnx
from jax_dcn.interop.torch_weights import read_state_dict, to_flax

torch = pytest.importorskip("torch", reason="compares with PyTorch")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="reads .safetensors")
from tests.interop import torch_resnet  # noqa: E402

# What published layers call their offset branch, and options.
LAYERS = {
    "version_1": ("conv_offset", dict(modulated=False, deform_groups=2)),
    "version_2": ("conv_offset_mask", dict(deform_groups=3, groups=2, dilation=2, padding=2)),
    "strides": ("offset_conv", dict(stride=2, padding=0)),
    # The branch pytorch_1.0.0 of the original adds a random bias where none was asked for.
    "frozen_bias": ("conv_offset", dict(bias=True)),
}


def state_dict(module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def channels_first(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def torch_result(module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.tensor(x)).numpy()


def options_of_flax(options: dict) -> dict:
    names = dict(
        stride="strides",
        padding="padding",
        dilation="kernel_dilation",
        groups="feature_group_count",
        deform_groups="offset_groups",
        modulated="modulated",
        bias="use_bias",
    )
    return dict(padding=1, use_bias=False) | {names[k]: value for k, value in options.items()}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("style", ["nnx", "linen"])
def test_layer_computes_what_it_computes_in_torch(name, style):
    branch, options = LAYERS[name]
    theirs = torch_resnet.randomize(torch_resnet.DeformConv(6, 4, **options))
    x = channels_first(2, 6, 7, 9)
    weights, images = state_dict(theirs), x.transpose(0, 2, 3, 1)
    weights = {k.replace("conv_offset", branch): v for k, v in weights.items()}
    if style == "nnx":
        layer = dcn_nnx.DeformConv(6, 4, 3, **options_of_flax(options), rngs=nnx.Rngs(0))
        nnx.update(layer, to_flax(weights, nnx.state(layer)))
        y = layer(images)
    else:
        layer = dcn_linen.DeformConv(4, 3, **options_of_flax(options))
        like = jax.eval_shape(layer.init, jax.random.key(0), images)
        y = layer.apply(to_flax(weights, like), images)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), torch_result(theirs, x), atol=1e-5)


# mmcv; mmdetection before it used mmcv's layers, and detectron2; the original's mmdetection.
@pytest.fixture(scope="module", params=["conv2.conv_offset", "conv2_offset", "conv_offset_mask"])
def dialect(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs():
    return torch_resnet.randomize(torch_resnet.ResNet50(5))


@pytest.fixture(scope="module")
def ours():
    make = lambda: resnet(50, 5, conv=dcn_nnx.DeformConv, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(make)
    model.eval()
    return nnx.split(model)


def renamed(weights: dict[str, np.ndarray], branch: str, prefix: str = "") -> dict:
    return {
        prefix + name.replace("conv2.conv_offset", branch): value for name, value in weights.items()
    }


def test_every_dialect_gives_the_same_network(theirs, ours, dialect):
    weights = state_dict(theirs)
    _, like = ours
    expected = to_flax(weights, like)
    found = to_flax(renamed(weights, dialect, "backbone."), like, prefix="backbone.")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_whole_network_computes_what_it_computes_in_torch(theirs, ours):
    x = channels_first(2, 3, 48, 64)
    graph, like = ours
    variables = to_flax(state_dict(theirs), like)
    y = jax.jit(lambda variables, x: nnx.merge(graph, variables)(x))(
        variables, x.transpose(0, 2, 3, 1)
    )
    expected = torch_result(theirs, x)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(y, expected, atol=2e-4 * np.abs(expected).max())


class LinenNetwork(nn.Module):
    def setup(self):
        self.layer1 = [nn.Conv(4, (3, 5)), nn.BatchNorm(use_running_average=True)]
        self.fc = nn.Dense(5)

    def __call__(self, x):
        for layer in self.layer1:
            x = layer(x)
        return self.fc(x.mean((1, 2)))


def test_networks_in_linen_compute_what_they_compute_in_torch():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(6, 4, (3, 5), padding="same"), torch.nn.BatchNorm2d(4)
    )
    theirs = torch_resnet.randomize(
        torch.nn.ModuleDict(dict(layer1=layers, fc=torch.nn.Linear(4, 5)))
    )
    x = channels_first(2, 6, 7, 9)
    images = x.transpose(0, 2, 3, 1)
    like = jax.eval_shape(LinenNetwork().init, jax.random.key(0), images)
    y = LinenNetwork().apply(to_flax(state_dict(theirs), like), images)
    pooled = torch_result(layers, x).mean((2, 3))
    np.testing.assert_allclose(y, torch_result(theirs["fc"], pooled), atol=1e-5)


def test_ordinary_network_becomes_a_deformable_one(theirs):
    weights = {k: v for k, v in state_dict(theirs).items() if "conv_offset" not in k}
    small = lambda: resnet(50, 7, conv=dcn_nnx.DeformConv, rngs=nnx.Rngs(0))
    like = nnx.state(nnx.eval_shape(small))
    variables = to_flax(weights, like, leave=["fc", "offset_conv"])
    flat = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(variables)}
    assert isinstance(flat["layer1.0.conv2.kernel"].get_value(), np.ndarray)
    for name in ("fc.kernel", "layer4.2.conv2.offset_conv.bias"):
        assert isinstance(flat[name].get_value(), jax.ShapeDtypeStruct)


def test_one_message_lists_all_that_does_not_fit(theirs, ours):
    weights = state_dict(theirs)
    del weights["bn1.running_var"], weights["layer2.0.conv2.conv_offset.bias"]
    weights |= {"layer2.0.conv2.bias": np.zeros(128), "fc.weight": np.zeros((1000, 2048))}
    with pytest.raises(ValueError) as error:
        to_flax(weights, ours[1])
    message = str(error.value)
    assert re.search(
        r"2 missing:\n  bn1.running_var\n  layer2.0.conv2.offset_conv.bias or", message
    )
    assert "1 unexpected:\n  layer2.0.conv2.bias" in message
    assert "1 misshapen:\n  fc.weight: expected (5, 2048), got (1000, 2048)" in message
    assert "give it one with use_bias=True" in message and "prefix" not in message
    with pytest.raises(ValueError, match=r'With prefix="module\.backbone\." more'):
        to_flax(renamed(state_dict(theirs), "conv2_offset", "module.backbone."), ours[1])


def test_what_is_missing_keeps_its_value_unless_strict():
    like = {"params": {"conv": {"kernel": jnp.ones((1, 1, 2, 3)), "bias": jnp.ones(3)}}}
    weights = {"conv.weight": np.zeros((3, 2, 1, 1)), "other": np.zeros(1)}
    converted = to_flax(weights, like, strict=False)["params"]["conv"]
    assert not converted["kernel"].any() and converted["bias"].all()
    with pytest.raises(ValueError, match="misshapen"):
        to_flax(weights | {"conv.bias": np.zeros(4)}, like, strict=False)


@pytest.fixture
def tensors() -> dict:
    return {
        "a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2),
        "b": torch.arange(3, dtype=torch.float32),
    }


def test_files_of_both_kinds_hold_the_same(tensors, tmp_path):
    safetensors_torch.save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "plain.pth")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "checkpoint.pth")
    for path in tmp_path.iterdir():
        weights = read_state_dict(path)
        assert set(weights) == set(tensors) and weights["a.weight"].dtype == np.float32
        for name, value in weights.items():
            np.testing.assert_array_equal(value, tensors[name].float().numpy())


def test_safetensors_are_read_without_torch(tensors, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    safetensors_torch.save_file(tensors, path)
    pickled = tmp_path / "w.pth"
    torch.save(tensors, pickled)
    monkeypatch.setitem(sys.modules, "torch", None)  # An import of it fails.
    assert set(read_state_dict(path)) == set(tensors)
    with pytest.raises(ImportError, match=r"needs torch.*\.safetensors"):
        read_state_dict(pickled)


class Surprise:
    def __reduce__(self):
        return print, ("This ran.",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": Surprise()}}, "more than tensors"),
        ({"epoch": 3}, "no parameters, only .'epoch'."),
        ([1, 2], "a list, expected a state dict"),
    ],
)
def test_files_of_anything_else_are_refused(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "w.pth")
    assert not capsys.readouterr().out
