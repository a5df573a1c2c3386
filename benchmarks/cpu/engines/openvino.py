# SPDX-License-Identifier: MIT
"""OpenVINO's CPU plugin: DeformableConvolution of operation set 8, with a constant kernel."""

import numpy as np
import openvino
import openvino.opset8 as operations

from benchmarks.cpu.engines import (
    Task,
    channels_first,
    channels_last,
    only_forward,
    symmetric_padding,
)


def version() -> str:
    return openvino.__version__.split("-")[0]  # without the build


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    only_forward(mode, dtype)
    arrays = channels_first(case)
    names = [name for name in ("x", "offset", "mask") if name in arrays]
    inputs = {n: operations.parameter(arrays[n].shape, np.float32, name=n) for n in names}
    padding = symmetric_padding(case)
    y = operations.deformable_convolution(
        inputs["x"],
        inputs["offset"],
        operations.constant(arrays["kernel"]),
        case.strides,
        padding,
        padding,
        case.kernel_dilation,
        mask=inputs.get("mask"),
        group=case.feature_group_count,
        deformable_group=case.offset_groups,
        bilinear_interpolation_pad=True,
    )
    y = operations.add(y, operations.constant(arrays["bias"].reshape(1, -1, 1, 1)))
    model = openvino.Model([operations.result(y)], list(inputs.values()))
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    for index, name in enumerate(names):
        request.set_input_tensor(index, openvino.Tensor(arrays[name], shared_memory=True))

    def run():
        # The arrays are named here because the tensors do not keep them alive.
        request.infer()
        return arrays

    def results():
        run()
        return [channels_last(request.get_output_tensor(0).data)]

    return Task(run, results)
