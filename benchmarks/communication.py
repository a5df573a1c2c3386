# SPDX-License-Identifier: MIT
"""What devices send each other in one training step, read off the compiled program; nothing is timed.

Two deformable layers with the convolutions that predict their offsets, on 1 to 64 virtual devices:
split by images (the batch grows with the devices), by channels (the first layer's outputs, the
second one's inputs), or both. `python -m benchmarks.communication --json benchmarks/results/communication.json`
"""

import argparse
import collections
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from benchmarks.timing import machine
from jax_dcn import deform_conv2d
from tests.devices.collectives import collectives

IMAGES_PER_DEVICE, SIZE, CHANNELS = 8, (14, 14), 256  # the fourth stage of ResNet-50
DEVICES = (1, 2, 4, 8, 16, 32, 64)
CHANNEL_DEVICES = 4  # of "both": those that share a fast link
STRATEGIES = {
    "data parallel": lambda devices: (devices, 1),
    "tensor parallel": lambda devices: (1, devices),
    "both": lambda devices: (
        devices // min(devices, CHANNEL_DEVICES),
        min(devices, CHANNEL_DEVICES),
    ),
}
WHOLE, OUTPUTS, INPUTS = P(), P(None, None, None, "channels"), P(None, None, "channels")
PARAMETERS = {
    "offset_kernel": (3, 3, CHANNELS, 27),
    "kernel": (3, 3, CHANNELS, CHANNELS),
    "bias": (CHANNELS,),
}
SPLITS = [
    {"offset_kernel": WHOLE, "kernel": OUTPUTS, "bias": P("channels")},
    {"offset_kernel": INPUTS, "kernel": INPUTS, "bias": WHOLE},
]


def layer(x: jax.Array, parameters: dict[str, jax.Array]) -> jax.Array:
    predicted = jax.lax.conv_general_dilated(
        x, parameters["offset_kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    offset, logits = jnp.split(predicted, [18], axis=-1)
    offset = offset.reshape(*offset.shape[:-1], 1, 9, 2)
    mask = jax.nn.sigmoid(logits)[..., None, :]
    return deform_conv2d(x, parameters["kernel"], offset, mask, parameters["bias"])


def step(parameters: list[dict[str, jax.Array]], x: jax.Array) -> tuple:
    def loss(parameters):
        return jnp.mean(layer(jax.nn.relu(layer(x, parameters[0])), parameters[1]) ** 2)

    value, gradients = jax.value_and_grad(loss)(parameters)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients)


def measure(images: int, channels: int) -> dict[str, Any]:
    """Megabytes that a device sends in one step of a mesh of `images` times `channels` devices."""
    devices = jax.devices("cpu")[: images * channels]
    mesh = jax.make_mesh(
        (images, channels), ("images", "channels"), (AxisType.Auto,) * 2, devices=devices
    )

    def array(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    parameters = [
        {name: array(shape, split[name]) for name, shape in PARAMETERS.items()} for split in SPLITS
    ]
    x = array((IMAGES_PER_DEVICE * images, *SIZE, CHANNELS), P("images"))
    shardings = jax.tree.map(lambda p: p.sharding, parameters)
    compiled = jax.jit(step, out_shardings=(None, shardings)).lower(parameters, x).compile()
    sent: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.Counter()
    for collective in collectives(compiled):
        sent[collective.kind] += collective.sent_bytes
        calls[collective.kind] += 1
    return {
        "mesh": [images, channels],
        "megabytes_sent": round(sum(sent.values()) / 1e6, 3),
        "by_kind": {kind: round(size / 1e6, 3) for kind, size in sent.items()},
        "calls": dict(calls),
        "gigaflop": round(flop(channels) / 1e9, 3),
    }


def flop(channels: int) -> float:
    """Of one device, in the matrix products of both layers, forward and twice that backward."""
    layers, passes = 2, 3
    positions = IMAGES_PER_DEVICE * math.prod(SIZE)
    return layers * passes * 2 * positions * 9 * CHANNELS * CHANNELS / channels


def draw(results: dict[str, list[dict]], path: pathlib.Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, rows in results.items():
        axes.plot(DEVICES, [row["megabytes_sent"] for row in rows], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="devices", ylabel="MB sent per step and device", ylim=(0, None))
    axes.set_xticks(DEVICES, map(str, DEVICES))
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    results: dict[str, list[dict]] = {}
    for name, shape in STRATEGIES.items():
        results[name] = [measure(*shape(devices)) for devices in DEVICES]
        for devices, row in zip(DEVICES, results[name], strict=True):
            print(f"{name:16} {devices:3} devices  {row['megabytes_sent']:8.2f} MB  {row['calls']}")
    if arguments.json:
        record = {"machine": machine(), "results": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
