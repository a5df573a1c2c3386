# SPDX-License-Identifier: MIT
"""Residual networks whose 3x3 convolutions are of any kind: ordinary, or deformable in some stages."""

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Conv = Callable[..., nnx.Module]
"""Makes a convolution as `nnx.Conv` does: `conv(in_features, out_features, (3, 3), strides, ...)`."""

_conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_head_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, both of the kind `conv`, the first with the strides."""

    expansion = 1

    def __init__(self, in_features: int, width: int, strides: int, conv: Conv, make: "_Layers"):
        self.conv1 = make.conv(conv, in_features, width, 3, strides)
        self.bn1 = make.norm(width)
        self.conv2 = make.conv(conv, width, width, 3)
        self.bn2 = make.last_norm(width)
        self.downsample = make.downsample(in_features, width, strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + _shortcut(self.downsample, x))


class Bottleneck(nnx.Module):
    """A 3x3 convolution of the kind `conv`, which has the strides, between two of 1x1."""

    expansion = 4

    def __init__(self, in_features: int, width: int, strides: int, conv: Conv, make: "_Layers"):
        out_features = width * self.expansion
        self.conv1 = make.conv(nnx.Conv, in_features, width, 1)
        self.bn1 = make.norm(width)
        self.conv2 = make.conv(conv, width, width, 3, strides)
        self.bn2 = make.norm(width)
        self.conv3 = make.conv(nnx.Conv, width, out_features, 1)
        self.bn3 = make.last_norm(out_features)
        self.downsample = make.downsample(in_features, out_features, strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + _shortcut(self.downsample, x))


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nnx.Module):
    """A residual network in the layout, and with the parameter names, of torchvision (v1.5).

    Images `[N, H, W, 3]` become logits `[N, num_classes]`. Stage c2 of the papers is `layer1`.
    With `num_classes=None` the network has no head, only `features`.
    """

    def __init__(
        self,
        block: Block,
        blocks: Sequence[int],
        num_classes: int | None,
        convs: Sequence[Conv],
        make: "_Layers",
        *,
        width: int = 64,
    ):
        self.conv1 = make.conv(nnx.Conv, 3, width, 7, 2)
        self.bn1 = make.norm(width)
        features = width
        for stage, (count, conv) in enumerate(zip(blocks, convs, strict=True)):
            layers = []
            for index in range(count):
                strides = 2 if stage > 0 and index == 0 else 1
                layers.append(block(features, width * 2**stage, strides, conv, make))
                features = width * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(layers))
        self.fc = None if num_classes is None else make.head(features, num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.fc(jnp.mean(self.features(images)[-1], axis=(1, 2)))

    def features(self, images: jax.Array) -> list[jax.Array]:
        """The outputs of the stages c2 to c5, at strides 4, 8, 16 and 32."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
            outputs.append(x)
        return outputs


_LAYOUTS: dict[int, tuple[Block, tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),  # Not of the papers: for trials.
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def resnet(
    depth: int,
    num_classes: int | None,
    *,
    conv: Conv = nnx.Conv,
    stages: Collection[int] = (3, 4, 5),
    width: int = 64,
    zero_init_residual: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> ResNet:
    """A ResNet with 3x3 convolutions of the kind `conv` in the stages c3 to c5.

    Ordinary and deformable networks differ by `conv` alone:

        resnet(50, 1000, rngs=rngs)                                                # ordinary
        resnet(50, 1000, conv=DeformConv, rngs=rngs)                               # version 2
        resnet(50, 1000, conv=partial(DeformConv, modulated=False), rngs=rngs)     # version 1

    and get the same initial kernels from the same `rngs`.

    Args:
      depth: 18, 34, 50 or 101; or 10, for trials.
      num_classes: Number of logits; `None` makes a backbone, without a head.
      conv: Called as `nnx.Conv`; makes the 3x3 convolutions of `stages`, in both kinds of block.
      stages: Where, among the papers' names c2, c3, c4, c5 of the stages.
      width: Features of the stem and of the first stage.
      zero_init_residual: Whether the last scale of every block starts at zero, so that a fresh
        block is the identity.
      dtype: Of the computation up to the logits.
      param_dtype: Of the parameters and of the logits.
      rngs: Random streams; `params` initialises the kernels.

    Raises:
      ValueError: if there is no network of this depth, or no stage of one of the `stages`.
    """
    if depth not in _LAYOUTS:
        raise ValueError(f"depth must be one of {sorted(_LAYOUTS)}, got {depth}.")
    if not set(stages) <= {2, 3, 4, 5}:
        raise ValueError(f"stages must be among 2, 3, 4, 5 (for c2 to c5), got {tuple(stages)}.")
    block, blocks = _LAYOUTS[depth]
    convs = [conv if stage in stages else nnx.Conv for stage in (2, 3, 4, 5)]
    make = _Layers(zero_init_residual, dtype, param_dtype, rngs)
    return ResNet(block, blocks, num_classes, convs, make, width=width)


class _Layers:
    """Makes the layers of one network: what all of them share is said once."""

    def __init__(self, zero_init_residual: bool, dtype, param_dtype, rngs: nnx.Rngs):
        options = dict(param_dtype=param_dtype, rngs=rngs)
        self._conv_options = options | dict(dtype=dtype, use_bias=False, kernel_init=_conv_init)
        # torch's momentum 0.1 is the weight of the new value, flax's 0.9 that of the old.
        self.norm = functools.partial(
            nnx.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, **options
        )
        zeros = dict(scale_init=nnx.initializers.zeros_init()) if zero_init_residual else {}
        self.last_norm = functools.partial(self.norm, **zeros)
        self.head = functools.partial(
            nnx.Linear, dtype=param_dtype, kernel_init=_head_init, **options
        )

    def conv(self, conv: Conv, in_features: int, features: int, size: int, strides: int = 1):
        """A convolution padded as in torch: on all sides alike, also where "SAME" would not."""
        return conv(
            in_features, features, (size, size), strides, padding=size // 2, **self._conv_options
        )

    def downsample(self, in_features: int, features: int, strides: int) -> nnx.List | None:
        """The layers of a shortcut between unlike shapes; `None` for the identity."""
        if strides == 1 and in_features == features:
            return None
        conv = self.conv(nnx.Conv, in_features, features, 1, strides)
        return nnx.List([conv, self.norm(features)])


def _shortcut(downsample: nnx.List | None, x: jax.Array) -> jax.Array:
    for layer in downsample or ():
        x = layer(x)
    return x
