# SPDX-License-Identifier: MIT
"""Names and shapes in checkpoints of mmdetection 3, written out as its modules make them."""

Shapes = dict[str, tuple[int, ...]]

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def faster_rcnn(
    depth: int, width: int = 64, features: int = 256, hidden: int = 1024, classes: int = 80
) -> Shapes:
    """Faster R-CNN with modulated deformable convolutions in c3 to c5."""
    shapes = _body(depth, width, features)
    return shapes | _box_head("roi_head.bbox_head", features, hidden, classes, classes)


def cascade_mask_rcnn(
    depth: int, width: int = 64, features: int = 256, hidden: int = 1024, classes: int = 80
) -> Shapes:
    """Cascade Mask R-CNN with the same backbone: three box heads and three mask heads."""
    shapes = _body(depth, width, features)
    for stage in range(3):
        shapes |= _box_head(f"roi_head.bbox_head.{stage}", features, hidden, classes, 1)
        mask_head = f"roi_head.mask_head.{stage}"
        for layer in range(4):
            shapes |= _layer(f"{mask_head}.convs.{layer}.conv", (features, features, 3, 3))
        shapes |= _layer(f"{mask_head}.upsample", (features, features, 2, 2))
        shapes |= _layer(f"{mask_head}.conv_logits", (classes, features, 1, 1))
    return shapes


def _body(depth: int, width: int, features: int) -> Shapes:
    """Backbone, neck and the head that proposes."""
    shapes = {"backbone.conv1.weight": (width, 3, 7, 7)} | _norm("backbone.bn1", width)
    channels = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        middle = width * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes |= _block(name, channels, middle, first=block == 0, deformable=stage > 0)
            channels = 4 * middle
    for level in range(4):
        channels = 4 * width * 2**level
        shapes |= _layer(f"neck.lateral_convs.{level}.conv", (features, channels, 1, 1))
        shapes |= _layer(f"neck.fpn_convs.{level}.conv", (features, features, 3, 3))
    shapes |= _layer("rpn_head.rpn_conv", (features, features, 3, 3))
    shapes |= _layer("rpn_head.rpn_cls", (3, features, 1, 1))
    return shapes | _layer("rpn_head.rpn_reg", (12, features, 1, 1))


def _block(name: str, channels: int, middle: int, *, first: bool, deformable: bool) -> Shapes:
    shapes = {
        f"{name}.conv1.weight": (middle, channels, 1, 1),
        f"{name}.conv2.weight": (middle, middle, 3, 3),
        f"{name}.conv3.weight": (4 * middle, middle, 1, 1),
    }
    for layer, count in enumerate((middle, middle, 4 * middle), start=1):
        shapes |= _norm(f"{name}.bn{layer}", count)
    if deformable:
        shapes |= _layer(f"{name}.conv2.conv_offset", (27, middle, 3, 3))
    if first:
        shapes[f"{name}.downsample.0.weight"] = (4 * middle, channels, 1, 1)
        shapes |= _norm(f"{name}.downsample.1", 4 * middle)
    return shapes


def _box_head(name: str, features: int, hidden: int, classes: int, regressions: int) -> Shapes:
    return {
        **_layer(f"{name}.shared_fcs.0", (hidden, 49 * features)),
        **_layer(f"{name}.shared_fcs.1", (hidden, hidden)),
        **_layer(f"{name}.fc_cls", (classes + 1, hidden)),
        **_layer(f"{name}.fc_reg", (4 * regressions, hidden)),
    }


def _layer(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, count: int) -> Shapes:
    arrays = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{array}": (count,) for array in arrays} | {f"{name}.num_batches_tracked": ()}
