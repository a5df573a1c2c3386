# SPDX-License-Identifier: MIT
"""ONNX Runtime's CPU provider: a GridSample for each level, and a weighted sum of their samples."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.cpu.engines import Task, only_forward


def version() -> str:
    return onnxruntime.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    only_forward(mode, dtype)
    arrays = heads_first(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model(case, arrays).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def results():
        y = session.run(None, arrays)[0].reshape(case.batch, -1, case.query_count)
        return [y.transpose(0, 2, 1)]

    return Task(lambda: session.run(None, arrays), results)


def heads_first(case) -> dict[str, np.ndarray]:
    """Maps and grids `[N * M, ...]` of each level, and the weights `[N * M, 1, Q, L * P]`."""
    value, locations, weights = case.arrays()
    arrays, first = {}, 0
    for index, (height, width) in enumerate(case.shapes):
        image = value[:, first : first + height * width].transpose(0, 2, 3, 1)
        grid = (2 * locations[:, :, :, index] - 1).transpose(0, 2, 1, 3, 4)
        arrays[f"x{index}"] = image.reshape(-1, case.channels, height, width)
        arrays[f"grid{index}"] = grid.reshape(-1, *grid.shape[2:])
        first += height * width
    by_head = weights.transpose(0, 2, 1, 3, 4)
    arrays["weights"] = by_head.reshape(-1, 1, case.query_count, len(case.shapes) * case.points)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def model(case, arrays) -> onnx.ModelProto:
    def information(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    levels = range(len(case.shapes))
    nodes = [
        helper.make_node(
            "GridSample", [f"x{i}", f"grid{i}"], [f"s{i}"], mode="linear", padding_mode="zeros"
        )
        for i in levels
    ]
    nodes += [
        helper.make_node("Concat", [f"s{i}" for i in levels], ["samples"], axis=-1),
        helper.make_node("Mul", ["samples", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["y"], keepdims=0),
    ]
    heads = case.batch * case.heads
    graph = helper.make_graph(
        nodes,
        "attention",
        [information(n, a.shape) for n, a in arrays.items()],
        [information("y", (heads, case.channels, case.query_count))],
        [numpy_helper.from_array(np.array([-1], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
