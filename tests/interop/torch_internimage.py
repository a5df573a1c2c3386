# SPDX-License-Identifier: MIT
"""Blocks of InternImage and FlashInternImage in PyTorch, and the same blocks in both Flaxes.

The blocks in PyTorch have the names of the published ones, but no code of theirs.
"""

import torch
from flax import linen, nnx

from jax_dcn import linen as dcn_linen, nnx as dcn_nnx
from tests.deform_aggregate.windows import Window, in_torch

LayerNorm = torch.nn.LayerNorm


class ChannelsLast(torch.nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def depthwise(features, size):
    return torch.nn.Conv2d(features, features, size, padding=size // 2, groups=features)


class DCN(torch.nn.Module):
    """What both layers have."""

    def __init__(self, features, groups, kernel_size, center_feature_scale, **options):
        super().__init__()
        self.features, self.groups, self.scaled = features, groups, center_feature_scale
        self.options = dict(kernel_size=kernel_size, **options)
        self.taps = kernel_size**2 - options.get("remove_center", False)
        if center_feature_scale:
            weight, bias = torch.zeros(groups, features), torch.zeros(groups)
            self.center_feature_scale_proj_weight = torch.nn.Parameter(weight)
            self.center_feature_scale_proj_bias = torch.nn.Parameter(bias)

    def core(self, x, offset, mask):
        samples = (*x.shape[:3], self.groups, self.taps)
        window = Window(self.options, tuple(x.shape[1:3]))
        return in_torch(torch, window, x, offset.reshape(*samples, 2), mask.reshape(samples))

    def mixed(self, y, x, features):
        if not self.scaled:
            return y
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        share = torch.sigmoid(torch.nn.functional.linear(features, weight, bias))
        share = share.repeat_interleave(self.features // self.groups, -1)
        return y * (1 - share) + x * share


class DCNv3(DCN):
    def __init__(self, features, groups, kernel_size=3, *, dw_kernel_size=None, **options):
        options = dict(center_feature_scale=False) | options
        super().__init__(features, groups, kernel_size, **options)
        norm = torch.nn.Sequential(ChannelsLast(), LayerNorm(features, eps=1e-6))
        convolution = depthwise(features, dw_kernel_size or kernel_size)
        self.dw_conv = torch.nn.Sequential(convolution, norm, torch.nn.GELU())
        self.offset = torch.nn.Linear(features, groups * self.taps * 2)
        self.mask = torch.nn.Linear(features, groups * self.taps)
        self.input_proj = torch.nn.Linear(features, features)
        self.output_proj = torch.nn.Linear(features, features)

    def forward(self, x):
        features, projected = self.dw_conv(x.permute(0, 3, 1, 2)), self.input_proj(x)
        mask = self.mask(features).unflatten(-1, (self.groups, self.taps)).softmax(-1)
        y = self.core(projected, self.offset(features), mask)
        return self.output_proj(self.mixed(y, projected, features))


class DCNv4(DCN):
    def __init__(self, features, groups, kernel_size=3, *, dw_kernel_size=None, **options):
        options = dict(center_feature_scale=False) | options
        super().__init__(features, groups, kernel_size, **options)
        if dw_kernel_size:
            self.offset_mask_dw = depthwise(features, dw_kernel_size)
        packed = -(-groups * self.taps * 3 // 8) * 8
        self.offset_mask = torch.nn.Linear(features, packed)
        self.value_proj = torch.nn.Linear(features, features)
        self.output_proj = torch.nn.Linear(features, features)

    def forward(self, x):
        features, projected = x, self.value_proj(x)
        if hasattr(self, "offset_mask_dw"):
            features = self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        numbers = self.offset_mask(features)[..., : self.groups * self.taps * 3]
        by_group = numbers.unflatten(-1, (self.groups, -1))
        y = self.core(projected, by_group[..., : 2 * self.taps], by_group[..., 2 * self.taps :])
        return self.output_proj(self.mixed(y, projected, y))


class MLP(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.fc1 = torch.nn.Linear(features, 2 * features)
        self.fc2 = torch.nn.Linear(2 * features, features)

    def forward(self, x):
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Block(torch.nn.Module):
    """A block with norms after its layers and scales of residuals."""

    def __init__(self, dcn: DCN):
        super().__init__()
        features = dcn.features
        self.norm1 = torch.nn.Sequential(LayerNorm(features, eps=1e-6))
        self.dcn = dcn
        self.norm2 = torch.nn.Sequential(LayerNorm(features, eps=1e-6))
        self.mlp = MLP(features)
        self.gamma1 = torch.nn.Parameter(torch.ones(features))
        self.gamma2 = torch.nn.Parameter(torch.ones(features))

    def forward(self, x):
        x = x + self.gamma1 * self.norm1(self.dcn(x))
        return x + self.gamma2 * self.norm2(self.mlp(x))


def gelu(x):
    return nnx.gelu(x, approximate=False)


class NNXBlock(nnx.Module):
    def __init__(self, kind, features, **options):
        named = dict(param_dtype="float64", rngs=nnx.Rngs(0))
        self.norm1 = nnx.List([nnx.LayerNorm(features, **named)])
        self.dcn = getattr(dcn_nnx, kind)(features, **options, **named)
        self.norm2 = nnx.List([nnx.LayerNorm(features, **named)])
        self.mlp = nnx.Dict(
            fc1=nnx.Linear(features, 2 * features, **named),
            fc2=nnx.Linear(2 * features, features, **named),
        )
        self.gamma1, self.gamma2 = (nnx.Param(self.norm1[0].scale[...]) for _ in range(2))

    def __call__(self, x):
        gamma1, gamma2 = (g[None, None, None] for g in (self.gamma1, self.gamma2))
        x = x + gamma1 * self.norm1[0](self.dcn(x))
        return x + gamma2 * self.norm2[0](self.mlp.fc2(gelu(self.mlp.fc1(x))))


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        features, named = x.shape[-1], dict(param_dtype="float64")
        return linen.Dense(features, name="fc2", **named)(
            gelu(linen.Dense(2 * features, name="fc1", **named)(x))
        )


class LinenBlock(linen.Module):
    kind: str
    options: dict

    @linen.compact
    def __call__(self, x):
        features, named = x.shape[-1], dict(param_dtype="float64")
        dcn = getattr(dcn_linen, self.kind)(features, **self.options, **named, name="dcn")
        norm1, norm2 = (linen.LayerNorm(name=f"norm{i}_0", **named) for i in (1, 2))
        ones = linen.initializers.ones_init()
        gamma1, gamma2 = (
            self.param(f"gamma{i}", ones, (features,), "float64")[None, None, None] for i in (1, 2)
        )
        x = x + gamma1 * norm1(dcn(x))
        return x + gamma2 * norm2(LinenMLP(name="mlp")(x))
