# SPDX-License-Identifier: MIT
"""ONNX Runtime's CPU provider: DeformConv of operator set 22, with a constant kernel."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.cpu.engines import (
    Task,
    channels_first,
    channels_last,
    only_forward,
    symmetric_padding,
)


def version() -> str:
    return onnxruntime.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    only_forward(mode, dtype)
    arrays = channels_first(case)
    names = [name for name in ("x", "offset", "mask") if name in arrays]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model(case, arrays).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name in names:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]))
    shape = (case.batch, case.features, *case.output)
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
    binding.bind_ortvalue_output("y", y)

    def run():
        session.run_with_iobinding(binding)

    def results():
        run()
        return [channels_last(y.numpy())]

    return Task(run, results)


def model(case, arrays) -> onnx.ModelProto:
    shape = (case.batch, case.features, *case.output)

    def information(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    node = helper.make_node(
        "DeformConv",
        ["x", "kernel", "offset", "bias", *(["mask"] if case.modulated else [])],
        ["y"],
        kernel_shape=case.kernel,
        pads=symmetric_padding(case) * 2,
        strides=case.strides,
        dilations=case.kernel_dilation,
        group=case.feature_group_count,
        offset_group=case.offset_groups,
    )
    graph = helper.make_graph(
        [node],
        "deform_conv",
        [information(n, a.shape) for n, a in arrays.items() if n not in ("kernel", "bias")],
        [information("y", shape)],
        [numpy_helper.from_array(arrays[name], name) for name in ("kernel", "bias")],
    )
    opsets = [helper.make_opsetid("", 22)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
