# SPDX-License-Identifier: MIT
"""ONNX: what is exported computes the same in ONNX Runtime, and its nodes the same in JAX."""

import functools
import importlib.metadata
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_dcn
import jax_dcn.linen
from examples.imagenet.models import resnet
from jax_dcn.interop import onnx as interop
from jax_dcn.nnx import DCNv3, DCNv4, DeformConv, MSDeformAttn

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


def check(model) -> None:
    """Refuses a model whose nodes or shapes are wrong."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def run(model, *arrays) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
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
    check(model)
    for batch in (1, 3):
        x = images(batch, 9, 11, 4)
        np.testing.assert_allclose(run(model, x), layer(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


FREE = ("height", "width", 4)
BATCHES = {
    "fixed": ((2, 9, 11, 4), 0, [(2, 9, 11, 4)]),
    "none": ((9, 11, 4), 0, [(9, 11, 4)]),
    "two": ((2, 3, 9, 11, 4), 0, [(2, 3, 9, 11, 4)]),
    "one_free_of_two": (("b", 3, 9, 11, 4), 0, [(2, 3, 9, 11, 4), (1, 3, 9, 11, 4)]),
    "image_alone_under_vmap": (("b", 9, 11, 4), 1, [(3, 9, 11, 4)]),
    "batch_under_vmap": ((3, 2, 9, 11, 4), 1, [(3, 2, 9, 11, 4)]),
    "image_alone_under_two_vmaps": ((3, 2, 9, 11, 4), 2, [(3, 2, 9, 11, 4)]),
    "free_image": (("b", *FREE), 0, [(2, 9, 11, 4), (1, 12, 7, 4)]),
    "free_image_alone": (FREE, 0, [(9, 11, 4), (12, 7, 4)]),
    "all_free": (("b", "t", *FREE), 0, [(2, 3, 9, 11, 4), (1, 2, 12, 7, 4)]),
    "free_image_under_vmap": (("b", *FREE), 1, [(3, 9, 11, 4), (2, 12, 7, 4)]),
}


@exporter
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("modulated", [True, False])
def test_any_number_of_batch_axes_and_free_sizes_export(name, modulated):
    shape, vmaps, sizes = BATCHES[name]
    layer = displaced(DeformConv(4, 8, (3, 2), modulated=modulated, rngs=rngs(), **OPTIONS))
    function = layer
    for _ in range(vmaps):
        function = jax.vmap(function)
    model = interop.to_onnx(function, shape)
    check(model)
    assert "Pad" not in {node.op_type for node in model.graph.node}
    for size in sizes:
        x = images(*size)
        y = function(jnp.asarray(x))
        assert np.ptp(y) > 1
        np.testing.assert_allclose(run(model, x), y, rtol=1e-5, atol=1e-5)


def max_pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 2), (2, 1), ((1, 0), (0, 1)))


NEXT = {
    "conv": lambda: nnx.Conv(8, 5, (3, 2), rngs=rngs()),
    "deform_conv": lambda: displaced(DeformConv(8, 5, (3, 2), rngs=rngs())),
    "max_pool": lambda: max_pool,
    "max_pool_and_conv": lambda: Chain(max_pool, nnx.Conv(8, 5, (3, 2), rngs=rngs())),
}
CHAINED = {
    "fixed": ((2, 9, 11, 4), (2, 9, 11, 4)),
    "free": (("b", *FREE), (2, 9, 11, 4)),
    "no_batch_axis": ((9, 11, 4), (9, 11, 4)),
    "two_batch_axes": ((2, 3, 9, 11, 4), (2, 3, 9, 11, 4)),
    "two_free_batch_axes": (("b", "t", *FREE), (2, 3, 9, 11, 4)),
}
PAIRS = [
    (name, shapes)
    for name in NEXT
    for shapes, (shape, _) in CHAINED.items()
    if len(shape) < 5 or "max_pool" not in name  # Flax pools at most one batch axis.
]


class Chain(nnx.Module):
    """Layers, with a rectifier after the first."""

    def __init__(self, first, *rest):
        self.first, self.rest = first, nnx.List(rest)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        for layer in self.rest:
            x = layer(x)
        return x


@exporter
@pytest.mark.parametrize(("name", "shapes"), PAIRS)
def test_layers_after_a_layer_have_the_right_shapes(name, shapes, capfd):
    shape, size = CHAINED[shapes]
    first = displaced(DeformConv(4, 8, (3, 2), rngs=rngs(), **OPTIONS))
    f = Chain(first, NEXT[name]())
    model = interop.to_onnx(f, shape)
    check(model)
    x = images(*size)
    np.testing.assert_allclose(run(model, x), f(jnp.asarray(x)), rtol=1e-5, atol=1e-5)
    assert "Expected shape" not in capfd.readouterr().err  # ONNX Runtime warns of a wrong shape.


MAPS = ((4, 5), (2, 3))
ATTENTION = functools.partial(jax_dcn.ms_deform_attn, spatial_shapes=MAPS)
SAMPLED = {
    "grid_sample": (jax_dcn.grid_sample, [("n", 8, 9, 4), ("n", 5, 6, 2)], {}),
    "border": (
        functools.partial(jax_dcn.grid_sample, padding_mode="border", align_corners=True),
        [("n", 8, 9, 4), ("n", 5, 6, 2)],
        {},
    ),
    "reflection": (
        functools.partial(jax_dcn.grid_sample, mode="bicubic", padding_mode="reflection"),
        [("n", 8, 9, 4), ("n", 5, 6, 2)],
        {},
    ),
    "dcnv3": (
        functools.partial(jax_dcn.dcnv3, strides=(1, 2), offset_scale=0.5),
        [("n", 5, 7, 6), ("n", 5, 4, 3, 9, 2), ("n", 5, 4, 3, 9)],
        {},
    ),
    "dcnv4": (
        functools.partial(jax_dcn.dcnv4, groups=2, remove_center=True),
        [(2, 5, 7, 6), (2, 5, 7, 48)],
        {},
    ),
    "dcnv3_of_fixed_batch": (
        jax_dcn.dcnv3,
        [(2, 5, 7, 6), (2, 5, 7, 3, 9, 2), (2, 5, 7, 3, 9)],
        {},
    ),
    "attention": (ATTENTION, [("n", 26, 2, 3), ("n", "q", 2, 2, 3, 2), ("n", "q", 2, 2, 3)], {}),
    "opset_19": (ATTENTION, [(1, 26, 2, 3), (1, 7, 2, 2, 3, 2), (1, 7, 2, 2, 3)], dict(opset=19)),
    "no_batch_axis": (ATTENTION, [(26, 2, 3), ("q", 2, 2, 3, 2), ("q", 2, 2, 3)], {}),
    "two_batch_axes": (
        jax.vmap(ATTENTION),
        [("b", "n", 26, 2, 3), ("b", "n", "q", 2, 2, 3, 2), ("b", "n", "q", 2, 2, 3)],
        {},
    ),
    "not_weighted": (
        functools.partial(jax_dcn.deform_aggregate, shapes=MAPS, points=(1, 2)),
        [("n", 26, 6), ("n", "q", 2, 3, 2)],
        {},
    ),
}


@exporter
@pytest.mark.parametrize("mode, step", [("nearest", 2), ("bicubic", 5)])
def test_whole_positions_read_no_pixel_beside_them(mode, step):
    f = functools.partial(jax_dcn.grid_sample, mode=mode)
    x, grid = images(1, 8, 9, 4), images(1, 5, 6, 2)
    x[0, ::step, ::step] = np.inf
    expected = np.isfinite(f(jnp.asarray(x), jnp.asarray(grid)))
    model = interop.to_onnx(f, [x.shape, grid.shape])
    np.testing.assert_array_equal(np.isfinite(run(model, x, grid)), expected)
    assert not expected.all() and expected.any()


@exporter
@pytest.mark.parametrize("name", SAMPLED)
def test_sums_of_samples_become_grid_sample_nodes(name):
    f, shapes, options = SAMPLED[name]
    model = interop.to_onnx(f, shapes, **options)
    check(model)
    assert "GridSample" in [node.op_type for node in model.graph.node]
    for sizes in (dict(b=3, n=2, q=7), dict(b=1, n=3, q=4)):
        x, *rest = (images(*(sizes.get(size, size) for size in shape)) for shape in shapes)
        np.testing.assert_allclose(
            run(model, x, *rest), f(*map(jnp.asarray, (x, *rest))), rtol=1e-5, atol=1e-5
        )


@exporter
@pytest.mark.parametrize("name", ["MSDeformAttn", "DCNv3", "DCNv4"])
def test_layers_on_sums_of_samples_export(name):
    if name == "MSDeformAttn":
        layer = MSDeformAttn(12, heads=2, levels=2, points=3, rngs=rngs())
        f = functools.partial(layer, spatial_shapes=MAPS)
        shapes = [("n", 7, 12), ("n", 7, 4), ("n", 26, 12)]
    else:
        kind = {"DCNv3": DCNv3, "DCNv4": DCNv4}[name]
        f = layer = kind(12, groups=2, offset_scale=2.0, rngs=rngs())
        shapes = [("n", 5, 7, 12)]
    for _, parameter in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        parameter[...] = jnp.asarray(images(*parameter.shape)) / 5
    arrays = [images(*(3 if size == "n" else size for size in shape)) for shape in shapes]
    model = interop.to_onnx(f, shapes)
    check(model)
    np.testing.assert_allclose(
        run(model, *arrays), f(*map(jnp.asarray, arrays)), rtol=1e-5, atol=1e-5
    )


@exporter
@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize("f", [jax_dcn.sampling_positions, jax_dcn.offset_from_positions])
def test_positions_export(f, batch):
    f = functools.partial(f, kernel_size=(3, 2), strides=(2, 1), image_size=(9, 7))
    model = interop.to_onnx(f, (batch, 5, 7, 2, 6, 2))
    check(model)
    x = images(2, 5, 7, 2, 6, 2)
    np.testing.assert_allclose(run(model, x), f(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


@exporter
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_regions_become_a_roi_align_node(aligned, sampling_ratio, dtype):
    f = functools.partial(
        jax_dcn.deform_roi_align,
        spatial_scale=1 / 8,
        pooled_size=(3, 2),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    shapes = [jax.ShapeDtypeStruct((2, 13, 17, 5), dtype), ("regions", 5)]
    # ONNX Runtime has no RoiAlign of version 22 on the CPU.
    model = interop.to_onnx(f, shapes, opset=21)
    check(model)
    assert [node.op_type for node in model.graph.node].count("RoiAlign") == 1
    random = np.random.default_rng(1)
    centre, size = random.uniform(-40, 180, (50, 2)), random.uniform(0, 120, (50, 2))
    size[:5] = 0
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    rois = np.concatenate([np.arange(50)[:, None] % 2, corners], axis=1).astype(np.float32)
    x = images(2, 13, 17, 5).astype(dtype)
    y = f(jnp.asarray(x), jnp.asarray(rois))
    assert np.ptp(y) > 1
    error = 1e-5 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(run(model, x, rois), y, rtol=error, atol=error)


@exporter
@pytest.mark.parametrize("operand", ["offset", "mask", "deform_roi_pool"])
def test_regions_that_onnx_does_not_have_are_refused_in_a_sentence(operand):
    arrays = dict(offset=jnp.zeros((3, 2, 2, 1, 2)), mask=jnp.ones((3, 2, 2)))
    f = functools.partial(jax_dcn.deform_roi_align, spatial_scale=1.0, pooled_size=2)
    message = "ONNX has deform_roi_align without offset and mask only"
    if operand in arrays:
        f = functools.partial(f, **{operand: arrays[operand]})
    else:
        f = functools.partial(
            jax_dcn.deform_roi_pool, spatial_scale=1.0, pooled_size=2, output_dim=4
        )
        message = "ONNX has no deform_roi_pool: export the network up to"
    with pytest.raises(NotImplementedError, match=message):
        interop.to_onnx(f, [(1, 8, 9, 4), (3, 5)])


@exporter
def test_maps_of_free_size_are_refused_in_a_sentence():
    with pytest.raises(NotImplementedError, match="height and width of a sampled map"):
        interop.to_onnx(jax_dcn.grid_sample, [(1, "h", "w", 4), (1, 5, 6, 2)])


@exporter
def test_kernels_under_vmap_export():
    random = np.random.default_rng(0)
    shapes = ((3, 2, 5, 6, 4), (3, 3, 3, 4, 2), (3, 2, 5, 6, 1, 9, 2))
    arrays = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    function = jax.vmap(jax_dcn.deform_conv2d)
    model = interop.to_onnx(function, arrays)
    np.testing.assert_allclose(run(model, *arrays), function(*arrays), rtol=1e-5, atol=1e-5)


@exporter
def test_the_export_does_not_depend_on_calls_before_or_after():
    layer = DeformConv(4, 8, (3, 2), rngs=rngs())
    x = jnp.asarray(images(1, 9, 11, 4))

    def operators(function) -> list[str]:
        return [node.op_type for node in interop.to_onnx(function, x).graph.node]

    called, exported = jax.jit(lambda x: layer(x)), jax.jit(lambda x: layer(x))
    program = called.lower(x).as_text()
    assert operators(called) == operators(exported)
    assert exported.lower(x).as_text() == program


@exporter
def test_a_model_is_written_by_path(tmp_path):
    layer = displaced(DeformConv(4, 8, (3, 2), rngs=rngs(), **OPTIONS))
    x = images(2, 9, 11, 4)
    for name in ("a.onnx", tmp_path / "b.onnx"):
        path = tmp_path / name
        interop.to_onnx(layer, x, str(path) if isinstance(name, str) else path)
        np.testing.assert_allclose(
            run(onnx.load(path), x), layer(jnp.asarray(x)), rtol=1e-5, atol=1e-5
        )


QUIET = """
from flax import nnx
from jax_dcn.interop.onnx import to_onnx
from jax_dcn.nnx import DeformConv
to_onnx(DeformConv(4, 6, 3, rngs=nnx.Rngs(0)), ("batch", "height", "width", 4))
"""


@exporter
def test_the_first_export_logs_no_warnings():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUIET], capture_output=True, text=True, check=True
    )
    assert "Skipping" not in done.stderr and "is not known" not in done.stderr


@pytest.mark.parametrize("wrong", [None, 3, "batch", [(2, 3), None], [3.0], {"x": 1}, (-1, 2)])
def test_inputs_that_are_no_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="inputs must be shapes such as"):
        interop.to_onnx(jnp.sin, wrong)


@exporter
def test_tensors_of_pytorch_are_inputs():
    torch = pytest.importorskip("torch")
    model = interop.to_onnx(jnp.sin, torch.ones(2, 3, dtype=torch.float64))
    expected = interop.to_onnx(jnp.sin, jnp.ones((2, 3), jnp.float64))
    assert model.graph.input == expected.graph.input


def test_linen_modules_without_parameters_are_refused():
    layer = jax_dcn.linen.DeformConv(6, 3)
    with pytest.raises(ValueError, match=r"functools\.partial\(module\.apply, variables\)"):
        interop.to_onnx(layer, (1, 5, 6, 4))


class Training(nnx.Module):
    def __init__(self, layer):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs()), layer])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@exporter
@pytest.mark.parametrize("kind", ["batch_norm", "dropout"])
def test_models_in_training_mode_are_refused(kind):
    layer = nnx.BatchNorm(4, rngs=rngs()) if kind == "batch_norm" else nnx.Dropout(0.5, rngs=rngs())
    model = Training(layer)
    with pytest.raises(ValueError, match=r"layers\.1 is in training mode \(.*call model.eval"):
        interop.to_onnx(model, (2, 4))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        interop.to_onnx(lambda x: model(x), (2, 4))
    model.eval()
    x = images(2, 4)
    np.testing.assert_allclose(
        run(interop.to_onnx(model, (2, 4)), x), model(jnp.asarray(x)), rtol=1e-5, atol=1e-5
    )


def test_models_that_a_transform_of_flax_changes_are_refused():
    model = nnx.Linear(4, 4, rngs=rngs())
    with pytest.raises(ValueError, match=r"write jax\.jit for nnx\.jit"):
        interop.to_onnx(lambda x: nnx.jit(lambda model, x: model(x))(model, x), (2, 4))


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_attributes_may_be_arrays(kind):
    x, w, offset = jnp.ones((1, 2, 5, 6)), jnp.ones((3, 2, 2, 2)), jnp.zeros((1, 8, 3, 7))
    attributes = dict(pads=[1, 2, 0, 0], strides=[2, 1], dilations=[1, 1], kernel_shape=[2, 2])
    attributes = {name: kind(value) for name, value in attributes.items()}
    y = interop.deform_conv(x, w, offset, **attributes)
    assert y.shape == (1, 3, 3, 7) and y[0, 0, 0, 2] == 4


@pytest.mark.parametrize("name", ["pads", "strides", "dilations"])
@pytest.mark.parametrize(
    "wrong",
    ["bad", (1, 2, 3), 1, (1.0, 1.0, 1.0, 1.0), np.ones(2), (-1,) * 4, [2**31] * 2, [2**31] * 4],
)
def test_attributes_that_are_no_integers_are_named(name, wrong):
    x, w, offset = jnp.ones((1, 2, 5, 6)), jnp.ones((3, 2, 2, 2)), jnp.zeros((1, 8, 4, 5))
    with pytest.raises(ValueError, match=rf"{name} must be . integers from . to 2\*\*31 - 1, got"):
        interop.deform_conv(x, w, offset, **{name: wrong})


@exporter
def test_an_exported_network_computes_the_same():
    network = displaced(resnet(10, 7, width=8, conv=DeformConv, rngs=rngs()))
    network.eval()
    x = images(2, 65, 49, 3)
    model = interop.to_onnx(network, [x])
    check(model)
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
    sums = functools.partial(jax_dcn.deform_aggregate, shapes=((4, 4),), boundary="legacy")
    with pytest.raises(NotImplementedError, match="GridSample with boundary='legacy'"):
        interop.to_onnx(sums, [(1, 16, 2), (1, 3, 1, 5, 2)])
    with pytest.raises(NotImplementedError, match="DeformConv with boundary='legacy'"):
        interop.to_onnx(legacy, [x, kernel, offset])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_same_padding_with_strides_and_free_sizes_is_refused_in_a_sentence(transform):
    layer = DeformConv(4, 6, 3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='padding="SAME" with strides needs a known height'):
        interop.to_onnx(transform(lambda x: layer(x)), ("n", "height", "width", 4))


def test_free_sizes_that_fail_without_padding_keep_the_message_of_the_exporter(monkeypatch):
    def compares(function, avals, **options):
        return avals[0].shape[0] > 3

    monkeypatch.setattr("jax2onnx.to_onnx", compares)
    with pytest.raises(Exception, match="comparison 'n' > '3' is inconclusive"):
        interop.to_onnx(jnp.sin, ("n", 2))


@exporter
def test_maps_without_samples_have_no_node():
    options = dict(shapes=((7, 8), (1, 7)), points=(3, 0))
    f = functools.partial(jax_dcn.deform_aggregate, **options)
    arrays = images(2, 63, 6), images(2, 5, 2, 3, 2), images(2, 5, 2, 3)
    model = interop.to_onnx(f, [array.shape for array in arrays])
    check(model)
    np.testing.assert_allclose(
        run(model, *arrays), f(*map(jnp.asarray, arrays)), rtol=1e-5, atol=1e-5
    )
    f = functools.partial(jax_dcn.deform_aggregate, shapes=((7, 8),), points=(0,))
    with pytest.raises(NotImplementedError, match="positions have no samples"):
        interop.to_onnx(f, [(2, 56, 6), (2, 5, 2, 0, 2), (2, 5, 2, 0)])
