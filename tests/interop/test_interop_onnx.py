# SPDX-License-Identifier: MIT
"""ONNX: what is exported computes the same in ONNX Runtime, and its nodes the same in JAX."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_dcn
from examples.imagenet.models import resnet
from jax_dcn.interop import onnx as interop
from jax_dcn.nnx import DeformConv

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
JAX2ONNX = importlib.metadata.version("jax2onnx")
# The exporter's own warnings, about versions of JAX and of the packages it patches.
pytestmark = pytest.mark.filterwarnings("ignore")

exporter = pytest.mark.skipif(
    jax.__version_info__ >= (0, 12) and tuple(map(int, JAX2ONNX.split(".")[:2])) < (0, 17),
    reason=f"jax2onnx {JAX2ONNX} exports nothing with JAX {jax.__version__}: 0.17 does",
)
OPTIONS = dict(
    strides=(2, 1),
    padding=((1, 0), (1, 2)),
    kernel_dilation=(1, 2),
    feature_group_count=2,
    offset_groups=2,
)


def run(model, *arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def displaced(model: nnx.Module) -> nnx.Module:
    """The model with offsets and masks that differ everywhere; fresh ones are zero."""
    random = np.random.default_rng(1)
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if "offset_conv" in path:
            parameter[...] = jnp.asarray(random.normal(size=parameter.shape), jnp.float32) / 5
    return model


def rngs() -> nnx.Rngs:
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


@exporter
@pytest.mark.parametrize("modulated", [True, False])
def test_an_exported_layer_computes_the_same_for_any_batch(modulated):
    layer = displaced(
        DeformConv(
            4, 8, (3, 2), modulated=modulated, param_dtype=jnp.float32, rngs=rngs(), **OPTIONS
        )
    )
    model = interop.to_onnx(layer, [("batch", 9, 11, 4)])
    onnx.checker.check_model(model)
    for batch in (1, 3):
        x = images(batch, 9, 11, 4)
        np.testing.assert_allclose(run(model, x), layer(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


@exporter
def test_an_exported_network_computes_the_same():
    network = displaced(resnet(10, 7, width=8, conv=DeformConv, rngs=rngs()))
    network.eval()
    x = images(2, 65, 49, 3)
    model = interop.to_onnx(network, [x])
    assert [node.op_type for node in model.graph.node].count("DeformConv") == 6
    np.testing.assert_allclose(run(model, x), network(jnp.asarray(x)), rtol=1e-4, atol=1e-5)


def test_a_node_evaluates_to_what_onnx_runtime_computes():
    node = onnx.helper.make_node(
        "DeformConv",
        ["x", "w", "offset", "", "mask"],
        ["y"],
        kernel_shape=[3, 2],
        strides=[2, 1],
        pads=[1, 1, 0, 2],
        dilations=[1, 2],
        group=2,
        offset_group=3,
    )
    shapes = dict(x=(2, 6, 9, 11), w=(4, 3, 3, 2), offset=(2, 36, 4, 12), mask=(2, 18, 4, 12))
    random = np.random.default_rng(0)
    arrays = {k: random.normal(size=v).astype(np.float32) for k, v in shapes.items()}
    tensor = functools.partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [node],
        "one_node",
        [tensor(name, shape=shape) for name, shape in shapes.items()],
        [tensor("y", shape=None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    expected = run(model, *arrays.values())
    np.testing.assert_allclose(interop.evaluate(node, arrays), expected, rtol=1e-5, atol=1e-5)


def test_only_deform_conv_nodes_are_evaluated():
    with pytest.raises(ValueError, match="node must be a DeformConv, got Conv"):
        interop.evaluate(onnx.helper.make_node("Conv", ["x", "w"], ["y"]), {})


def test_attributes_that_do_not_fit_are_named():
    x, w, offset = jnp.ones((1, 2, 5, 6)), jnp.ones((3, 2, 2, 2)), jnp.zeros((1, 8, 4, 5))
    for wrong, message in (
        (dict(kernel_shape=(3, 3)), "kernel_shape"),
        (dict(group=2), "W must be"),
        (dict(offset_group=2), "offset must have 2"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.deform_conv(x, w, offset, **wrong)


def test_versions_of_onnx_without_the_operator_are_refused():
    with pytest.raises(ValueError, match="opset must be at least 19"):
        interop.to_onnx(jnp.sin, [(2, 3)], opset=18)


@exporter
def test_the_legacy_boundary_is_not_exported():
    x, kernel, offset = (
        jnp.ones((1, 4, 4, 2)),
        jnp.ones((1, 1, 2, 2)),
        jnp.zeros((1, 4, 4, 1, 1, 2)),
    )
    legacy = functools.partial(jax_dcn.deform_conv2d, boundary="legacy")
    with pytest.raises(NotImplementedError, match="boundary='legacy'"):
        interop.to_onnx(legacy, [x, kernel, offset])
