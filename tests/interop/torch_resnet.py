# SPDX-License-Identifier: MIT
"""Deformable layers and a ResNet in PyTorch, named as published ones, to import weights from."""

import torch
from torch import nn


def deform_conv2d(x, offset, mask, weight, bias, *, stride, padding, dilation):
    """What torchvision and mmcv compute: channels first, one tap and one corner after the other."""
    batch, channels, height, width = x.shape
    features, group_channels, rows, columns = weight.shape
    taps = rows * columns
    offset_groups = offset.shape[1] // (2 * taps)
    out_size = offset.shape[2:]
    x = x.reshape(batch, offset_groups, channels // offset_groups, height * width)
    out_y, out_x = torch.meshgrid(*(torch.arange(size) for size in out_size), indexing="ij")
    samples = []
    for tap in range(taps):
        dy, dx = (offset[:, 2 * tap + i :: 2 * taps] for i in (0, 1))  # [N, G, Ho, Wo]
        y = out_y * stride - padding + tap // columns * dilation + dy
        z = out_x * stride - padding + tap % columns * dilation + dx
        sample = 0
        for corner_y, corner_z in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = y.floor() + corner_y, z.floor() + corner_z
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = (1 - (y - row).abs()) * (1 - (z - column).abs()) * inside
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = index.long().reshape(batch, offset_groups, 1, -1)
            pixels = x.gather(3, index.expand(-1, -1, x.shape[2], -1))
            sample = sample + pixels * share.reshape(batch, offset_groups, 1, -1)
        if mask is not None:
            sample = sample * mask[:, tap::taps].reshape(batch, offset_groups, 1, -1)
        samples.append(sample.reshape(batch, channels // group_channels, group_channels, -1))
    weight = weight.reshape(channels // group_channels, -1, group_channels, taps)
    y = torch.einsum("gock,kngcp->ngop", weight, torch.stack(samples))
    y = y.reshape(batch, features, *out_size)
    return y if bias is None else y + bias[:, None, None]


class DeformConv(nn.Module):
    """The layer of mmcv, `DeformConv2dPack` and `ModulatedDeformConv2dPack` in one."""

    def __init__(
        self,
        channels,
        features,
        size=3,
        stride=1,
        padding=1,
        dilation=1,
        groups=1,
        deform_groups=1,
        modulated=True,
        bias=False,
    ):
        super().__init__()
        self.geometry = dict(stride=stride, padding=padding, dilation=dilation)
        self.modulated = modulated
        self.weight = nn.Parameter(torch.empty(features, channels // groups, size, size))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None
        branch = deform_groups * size * size * (3 if modulated else 2)
        self.conv_offset = nn.Conv2d(channels, branch, size, **self.geometry)

    def forward(self, x):
        offset, mask = self.conv_offset(x), None
        if self.modulated:
            first, second, mask = offset.chunk(3, dim=1)
            offset, mask = torch.cat((first, second), dim=1), mask.sigmoid()
        return deform_conv2d(x, offset, mask, self.weight, self.bias, **self.geometry)


class Bottleneck(nn.Module):
    def __init__(self, channels, width, stride, deformable):
        super().__init__()
        kind = DeformConv if deformable else nn.Conv2d
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = kind(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet50(nn.Module):
    """torchvision's ResNet-50 with the deformable stages c3 to c5 of mmdetection."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width, layers = 64 * 2**stage, []
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(Bottleneck(channels, width, stride, deformable=stage > 0))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def randomize(module: nn.Module) -> nn.Module:
    """Gives every parameter and statistic a value of its own, none of them a default; evaluates."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda shape: torch.randn(shape, generator=generator)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(1 + 0.2 * normal(value.shape).tanh())
            elif value.ndim == 1:
                value.copy_(0.3 * normal(value.shape))
            elif value.ndim > 1:
                value.copy_(normal(value.shape) / value[0].numel() ** 0.5)
    return module.eval()
