# SPDX-License-Identifier: MIT
"""Chains of layers under the names of published PyTorch networks, in PyTorch and in Flax.

A network is a table from dotted names to layers; each layer takes the result of the layer before.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from jax_dcn.nnx import DeformConv
from tests.interop import torch_resnet


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer in both libraries: `kind` is the name of a function below."""

    kind: str
    channels: int
    features: int
    options: tuple = ()


# ---------------------------------------------------------------------------------------- PyTorch


class Scale(nn.Module):
    """mmdetection's learnable factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return x * self.scale


class SeparateBranches(nn.Module):
    """The layer that tutorials build on torchvision's function: three convolutions."""

    def __init__(self, channels, features):
        super().__init__()
        self.offset_conv = nn.Conv2d(channels, 18, 3, padding=1)
        self.modulator_conv = nn.Conv2d(channels, 9, 3, padding=1)
        self.regular_conv = nn.Conv2d(channels, features, 3, padding=1)

    def forward(self, x):
        offset, mask = self.offset_conv(x), 2 * self.modulator_conv(x).sigmoid()
        weight, bias = self.regular_conv.weight, self.regular_conv.bias
        return torch_resnet.deform_conv2d(
            x, offset, mask, weight, bias, stride=1, padding=1, dilation=1
        )


class Guided(nn.Module):
    """EDVR's and BasicVSR++'s layer: another tensor predicts offsets, here the mirrored image."""

    def __init__(self, channels, features, groups, depth):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(features))
        sizes = [channels] * depth + [27 * groups]
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(sizes)]
        between = [layer for conv in convs[:-1] for layer in (conv, nn.LeakyReLU(0.1))]
        self.conv_offset = convs[0] if depth == 1 else nn.Sequential(*between, convs[-1])

    def forward(self, x):
        first, second, mask = self.conv_offset(x.flip(3)).chunk(3, dim=1)
        offset = torch.cat((first, second), dim=1)
        options = dict(stride=1, padding=1, dilation=1)
        return torch_resnet.deform_conv2d(
            x, offset, mask.sigmoid(), self.weight, self.bias, **options
        )


class WithoutBranch(nn.Module):
    """RepPoints' layer: offsets are an argument, here the image's first 18 channels."""

    def __init__(self, channels, features):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, channels, 3, 3))

    def forward(self, x):
        options = dict(stride=1, padding=1, dilation=1)
        return torch_resnet.deform_conv2d(x, x[:, :18], None, self.weight, None, **options)


class Renamed(torch_resnet.DeformConv):
    """DCNv2's layer: mmcv's with another name for the branch."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.conv_offset_mask = self._modules.pop("conv_offset")

    @property
    def conv_offset(self):
        return self.conv_offset_mask


def torch_layer(layer: Layer) -> nn.Module:
    i, o, options = layer.channels, layer.features, dict(layer.options)
    size = options.get("size", 3)
    make = {
        "conv": lambda: nn.Conv2d(i, o, size, padding=size // 2, bias=options.get("bias", True)),
        "batch_norm": lambda: nn.BatchNorm2d(o),
        "group_norm": lambda: nn.GroupNorm(2, o),
        "relu": nn.ReLU,
        "scale": Scale,
        "upsample": lambda: nn.ConvTranspose2d(i, o, 4, 2, 1, groups=o, bias=False),
        "mmcv": lambda: torch_resnet.DeformConv(i, o, **options),
        "dcnv2": lambda: Renamed(i, o, **options),
        "separate": lambda: SeparateBranches(i, o),
        "guided": lambda: Guided(i, o, options["groups"], options["depth"]),
        "without_branch": lambda: WithoutBranch(i, o),
    }
    return make[layer.kind]()


class TorchNetwork(nn.Module):
    def __init__(self, layers: dict[str, Layer]):
        super().__init__()
        self.names = list(layers)
        for name, layer in layers.items():
            *parents, last = name.split(".")
            module: nn.Module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.add_module(last, torch_layer(layer))

    @torch.no_grad()
    def results(self, x) -> list:
        """The result of every layer."""
        results = []
        for name in self.names:
            x = self.get_submodule(name)(x)
            results.append(x.numpy().transpose(0, 2, 3, 1))
        return results


# ------------------------------------------------------------------------------------------- Flax


class FlaxScale(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(self, x):
        return x * self.scale[...]


class FlaxGuided(DeformConv):
    """EDVR's layer, whose guide is the mirrored image."""

    def __call__(self, x):
        return super().__call__(x, guide=x[:, :, ::-1])


class FlaxSecondOrder(DeformConv):
    """BasicVSR++'s layer: a stack of convolutions of its own predicts offsets and mask."""

    def __init__(self, channels, features, groups, depth, rngs):
        options = dict(padding=1, offset_groups=groups, offset_branch=False)
        super().__init__(channels, features, 3, **options, rngs=rngs)
        sizes = [channels] * depth + [27 * groups]
        convs = [nnx.Conv(i, o, (3, 3), padding=1, rngs=rngs) for i, o in itertools.pairwise(sizes)]
        between = [layer for conv in convs[:-1] for layer in (conv, leaky_relu)]
        self.conv_offset = nnx.List([*between, convs[-1]])

    def __call__(self, x):
        guide = x[:, :, ::-1]
        for layer in self.conv_offset:
            guide = layer(guide)
        count = 18 * self.offset_groups
        shape = (*guide.shape[:-1], self.offset_groups, 9)
        offset = guide[..., :count].reshape(*shape, 2)
        return super().__call__(x, offset, jax.nn.sigmoid(guide[..., count:].reshape(shape)))


class FlaxWithoutBranch(DeformConv):
    """RepPoints' layer, whose offsets are the image's first 18 channels."""

    def __call__(self, x):
        return super().__call__(x, x[..., :18].reshape(*x.shape[:-1], 1, 9, 2))


def leaky_relu(x):
    return jax.nn.leaky_relu(x, 0.1)


def flax_layer(layer: Layer) -> Any:
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    i, o, options = layer.channels, layer.features, dict(layer.options)
    size = options.get("size", 3)
    if layer.kind in ("mmcv", "dcnv2"):
        names = dict(deform_groups="offset_groups", modulated="modulated", bias="use_bias")
        ours = dict(use_bias=False) | {names[k]: value for k, value in options.items()}
        return DeformConv(i, o, 3, padding=1, **ours, rngs=rngs)
    make = {
        "conv": lambda: nnx.Conv(
            i, o, (size, size), padding=size // 2, use_bias=options.get("bias", True), rngs=rngs
        ),
        "batch_norm": lambda: nnx.BatchNorm(o, use_running_average=True, epsilon=1e-5, rngs=rngs),
        "group_norm": lambda: nnx.GroupNorm(o, num_groups=2, epsilon=1e-5, rngs=rngs),
        "relu": lambda: nnx.relu,
        "scale": FlaxScale,
        "upsample": lambda: nnx.Conv(
            i,
            o,
            (4, 4),
            padding=2,
            input_dilation=2,
            feature_group_count=o,
            use_bias=False,
            rngs=rngs,
        ),
        "separate": lambda: DeformConv(i, o, 3, padding=1, mask_scale=2.0, rngs=rngs),
        "guided": lambda: (
            FlaxGuided(i, o, 3, padding=1, offset_groups=options["groups"], rngs=rngs)
            if options["depth"] == 1
            else FlaxSecondOrder(i, o, **options, rngs=rngs)
        ),
        "without_branch": lambda: FlaxWithoutBranch(
            i, o, 3, padding=1, modulated=False, use_bias=False, offset_branch=False, rngs=rngs
        ),
    }
    return make[layer.kind]()


class Node(nnx.Module):
    """A module with children of any names."""

    def __init__(self, children: dict[str, Any]):
        for name, child in children.items():
            setattr(self, name, child)


class FlaxNetwork(nnx.Module):
    def __init__(self, layers: dict[str, Layer]):
        self.names = tuple(layers)
        tree: dict[str, Any] = {}
        for name, layer in layers.items():
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = flax_layer(layer)
        for name, children in tree.items():
            setattr(self, name, _modules(children))

    def results(self, x) -> list:
        """The result of every layer."""
        results = []
        for name in self.names:
            layer: Any = self
            for part in name.split("."):
                layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
            x = layer(x)
            results.append(x)
        return results


def _modules(children: Any) -> Any:
    if not isinstance(children, dict):
        return children
    modules = {name: _modules(child) for name, child in children.items()}
    if list(modules) == [str(index) for index in range(len(modules))]:
        return nnx.List(modules.values())
    return Node(modules)
