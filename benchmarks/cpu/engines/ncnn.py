# SPDX-License-Identifier: MIT
"""ncnn's DeformableConv2D. It has no batch, so that images go through it one after the other."""

import pathlib
import tempfile

import ncnn
import numpy as np

from benchmarks.cpu.engines import (
    Task,
    Unsupported,
    channels_first,
    channels_last,
    only_forward,
    symmetric_padding,
)


def version() -> str:
    return ncnn.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    only_forward(mode, dtype)
    if case.feature_group_count != 1 or case.offset_groups != 1:
        raise Unsupported("groups")
    arrays = channels_first(case)
    names = [name for name in ("x", "offset", "mask") if name in arrays]
    net = network(case, arrays, names, threads)
    images = [{n: ncnn.Mat(arrays[n][i]).clone() for n in names} for i in range(case.batch)]

    def run():
        return [extract(net, image) for image in images]

    return Task(run, lambda: [channels_last(np.stack([np.array(y) for y in run()]))])


def extract(net: ncnn.Net, image: dict) -> ncnn.Mat:
    extractor = net.create_extractor()
    for name, mat in image.items():
        extractor.input(name, mat)
    code, y = extractor.extract("y")
    if code != 0:
        raise RuntimeError(f"ncnn returned {code}")
    return y


def network(case, arrays, names, threads: int) -> ncnn.Net:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        parameters, weights = pathlib.Path(folder, "param"), pathlib.Path(folder, "bin")
        parameters.write_text(description(case, arrays, names))
        no_tag = bytes(4)  # weights follow as they are
        weights.write_bytes(no_tag + arrays["kernel"].tobytes() + arrays["bias"].tobytes())
        net.load_param(str(parameters))
        net.load_model(str(weights))
    return net


def description(case, arrays, names) -> str:
    """The network in ncnn's text format: inputs, and one layer with its numbered parameters."""
    (kernel_y, kernel_x), (stride_y, stride_x) = case.kernel, case.strides
    (dilation_y, dilation_x), (pad_y, pad_x) = case.kernel_dilation, symmetric_padding(case)
    values = {0: case.features, 1: kernel_x, 11: kernel_y, 2: dilation_x, 12: dilation_y}
    values |= {3: stride_x, 13: stride_y, 4: pad_x, 14: pad_y, 5: 1, 6: arrays["kernel"].size}
    layer = [f"DeformableConv2D convolution {len(names)} 1", *names, "y"]
    layer += [f"{key}={value}" for key, value in values.items()]
    lines = [*(f"Input {name} 0 1 {name}" for name in names), " ".join(layer)]
    magic = 7767517
    return "\n".join([str(magic), f"{len(lines)} {len(lines)}", *lines, ""])
