# SPDX-License-Identifier: MIT
"""The drop-in for torchvision's function, against other people's numbers and engines."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_dcn
from jax_dcn.interop.torchvision import deform_conv2d
from tests.laws.loops import deform_conv2d as loop_deform_conv2d

# The geometry of torchvision's own tests.
STRIDE, PADDING, DILATION, KERNEL = (2, 1), (1, 0), (2, 1), (3, 2)
CHANNELS, FEATURES, GROUPS, OFFSET_GROUPS, IMAGE, OUTPUT = 6, 2, 2, 3, (5, 4), (2, 3)


def published_case(batch: int, seed: int = 0):
    random = np.random.default_rng(seed)
    taps = KERNEL[0] * KERNEL[1]
    return (
        random.normal(size=(batch, CHANNELS, *IMAGE)),
        random.normal(size=(batch, OFFSET_GROUPS * 2 * taps, *OUTPUT)),
        random.normal(size=(FEATURES, CHANNELS // GROUPS, *KERNEL)),
        random.normal(size=FEATURES),
        random.normal(size=(batch, OFFSET_GROUPS * taps, *OUTPUT)),
    )


@pytest.mark.parametrize("batch", [0, 1, 33])
@pytest.mark.parametrize("modulated", [True, False])
def test_published_geometry_equals_loops_over_everything(batch, modulated):
    x, offset, weight, bias, mask = published_case(batch)
    y = deform_conv2d(
        x, offset, weight, bias, STRIDE, PADDING, DILATION, mask if modulated else None
    )
    taps = KERNEL[0] * KERNEL[1]
    offsets = np.zeros((batch, *OUTPUT, OFFSET_GROUPS, taps, 2))
    masks = np.zeros(offsets.shape[:-1])
    for group, tap in np.ndindex(OFFSET_GROUPS, taps):
        masks[..., group, tap] = mask[:, group * taps + tap]
        for component in range(2):
            channel = (group * taps + tap) * 2 + component
            offsets[..., group, tap, component] = offset[:, channel]
    expected = loop_deform_conv2d(
        x.transpose(0, 2, 3, 1),
        weight.transpose(2, 3, 1, 0),
        offsets,
        masks if modulated else None,
        bias,
        strides=STRIDE,
        padding=PADDING,
        kernel_dilation=DILATION,
        groups=GROUPS,
    )
    assert y.shape == (batch, FEATURES, *OUTPUT)
    np.testing.assert_allclose(y, expected.transpose(0, 3, 1, 2), rtol=1e-12, atol=1e-12)


def test_gradients_have_the_layout_of_the_arguments():
    arguments = published_case(2)

    def loss(x, offset, weight, bias, mask):
        return deform_conv2d(x, offset, weight, bias, STRIDE, PADDING, DILATION, mask).sum()

    gradients = jax.grad(loss, range(5))(*arguments)
    assert [g.shape for g in gradients] == [a.shape for a in arguments]
    direction = np.random.default_rng(2).normal(size=arguments[1].shape)
    step = 1e-6
    ahead, behind = (
        loss(arguments[0], arguments[1] + sign * step * direction, *arguments[2:])
        for sign in (1, -1)
    )
    np.testing.assert_allclose(
        np.vdot(gradients[1], direction), (ahead - behind) / (2 * step), rtol=1e-5
    )


def onnx_cases() -> list:
    """The nodes, inputs and outputs of ONNX's own backend tests of DeformConv."""
    onnx = pytest.importorskip("onnx", reason="ONNX's test cases come with the package onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import deformconv
    cases = []
    original = deformconv.expect
    deformconv.expect = lambda node, inputs, outputs, name: cases.append((node, inputs, outputs))
    try:
        for name in dir(deformconv.DeformConv):
            if name.startswith("export"):
                getattr(deformconv.DeformConv, name)()
    finally:
        deformconv.expect = original
    attributes = lambda node: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return [(attributes(node), inputs, outputs[0]) for node, inputs, outputs in cases]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of onnx, where NumPy is newer
def test_cases_of_onnx():
    cases = onnx_cases()
    assert len(cases) == 4
    for attributes, inputs, expected in cases:
        x, weight, offset, bias, mask = (*inputs, None, None)[:5]
        assert bias is None or bias.ndim == 1
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        assert (top, left) == (bottom, right)
        y = deform_conv2d(x, offset, weight, bias, padding=(top, left), mask=mask)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_onnx_runtime_computes_the_same(seed):
    onnx = pytest.importorskip("onnx", reason="compares with ONNX Runtime")
    runtime = pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime")
    random = np.random.default_rng(seed)
    draw = lambda most: int(random.integers(1, most + 1))
    groups, offset_groups, batch, kernel = draw(2), draw(3), draw(3), (draw(3), draw(3))
    stride, dilation, padding = [(draw(2), draw(2)) for _ in range(3)]
    channels, features = 6 * draw(2), groups * draw(5)
    image = (6 + draw(5), 6 + draw(5))
    output = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(image, padding, dilation, kernel, stride, strict=True)
    )
    taps = kernel[0] * kernel[1]
    arrays = {
        "x": random.normal(size=(batch, channels, *image)),
        "w": random.normal(size=(features, channels // groups, *kernel)),
        "offset": 2 * random.normal(size=(batch, offset_groups * taps * 2, *output)),
        "b": random.normal(size=features),
        "mask": random.random((batch, offset_groups * taps, *output)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    node = onnx.helper.make_node(
        "DeformConv",
        list(arrays),
        ["y"],
        strides=stride,
        dilations=dilation,
        pads=padding * 2,
        group=groups,
        offset_group=offset_groups,
    )
    value = lambda name, shape: onnx.helper.make_tensor_value_info(
        name, onnx.TensorProto.FLOAT, shape
    )
    graph = onnx.helper.make_graph(
        [node], "g", [value(n, a.shape) for n, a in arrays.items()], [value("y", None)]
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, arrays)
    y = deform_conv2d(
        arrays["x"],
        arrays["offset"],
        arrays["w"],
        arrays["b"],
        stride,
        padding,
        dilation,
        arrays["mask"],
    )
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input=jnp.ones((6, 5, 4))), "input must have 4 axes"),
        (dict(weight=jnp.ones((2, 4, 3, 2))), "weight must be .O, C // groups, kh, kw."),
        (dict(offset=jnp.ones((1, 35, 2, 3))), "offset must have a multiple of 12 channels"),
        (dict(mask=jnp.ones((1, 17, 2, 3))), "mask must have a multiple of 6 channels"),
        (dict(offset=jnp.ones((1, 36, 3, 3))), r"offset does not fit input and weight: .*36, 2, 3"),
        (dict(offset=jnp.ones((2, 36, 2, 3))), r"offset does not fit input and weight: .*1, 36"),
        (
            dict(offset=jnp.ones((1, 48, 2, 3))),
            "offset has 4 offset groups, .* 6 channels of input",
        ),
        (dict(mask=jnp.ones((1, 12, 2, 3))), r"mask does not fit offset, .*\(1, 18, 2, 3\)"),
        (dict(weight=jnp.ones((3, 3, 3, 2))), "weight has 3 output channels, which its 2 groups"),
        (dict(weight=jnp.ones((2, 3, 0, 2))), "weight must be"),
        (dict(weight=jnp.ones((2, 3, 3, 2), jnp.bfloat16)), "weight must have the dtype of input"),
        (
            dict(input=jnp.ones((1, 6, 1, 1))),
            "input of shape .* is smaller than the kernel of weight",
        ),
        (dict(input=jnp.ones((1, 6, 5, 0))), r"input must have pixels, got shape \(1, 6, 5, 0\)"),
        (dict(input=jnp.ones((1, 6, 5, 4), int)), "input must have a dtype of .*got int"),
        (dict(offset=None), r"offset must be an array \[N, 2 \* G \* kh \* kw, Ho, Wo\], got None"),
        (dict(input="image"), r"input must be an array \[N, C, H, W\], got 'image'"),
        (dict(bias=jnp.ones(3)), r"bias must be \[O\]: expected \(2,\), got \(3,\)"),
        (dict(bias=jnp.ones((2, 1))), "bias must have 1 axis"),
        (dict(stride=0), r"stride must be an integer from 1 to 2\*\*31 - 1 or a pair .*got 0"),
        (dict(stride=2**31), "stride must be .*got 2147483648"),
        (dict(stride=(1, 1, 1)), r"stride must be .*got \(1, 1, 1\)"),
        (dict(padding="same"), r"padding must be .*got 'same'"),
        (dict(padding=(-1, 0)), r"padding must be .*got \(-1, 0\)"),
        (dict(dilation=1.5), r"dilation must be .*got 1.5"),
        (dict(dilation=None), r"dilation must be .*got None"),
    ],
)
def test_wrong_argument_is_named(change, message):
    x, offset, weight, _, mask = (a.astype(np.float32) for a in published_case(1))
    good = dict(input=x, offset=offset, weight=weight, mask=mask)
    good = {name: jnp.asarray(array, jnp.float32) for name, array in good.items()}
    good |= dict(stride=STRIDE, padding=PADDING, dilation=DILATION)
    change = {
        name: value.astype(jnp.float32) if getattr(value, "dtype", None) == "float64" else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message) as error:
        deform_conv2d(**(good | change))
    ours = r"\bx\b|kernel_dilation|feature_group_count|strides|channels-last|\[\.\.\."
    assert not re.search(ours, str(error.value))


def test_tensors_of_pytorch_are_arrays():
    torch = pytest.importorskip("torch")
    x, offset, weight, bias, mask = (a.astype(np.float32) for a in published_case(1))
    tensors = [torch.from_numpy(array) for array in (x, offset, weight, bias)]
    options = dict(stride=STRIDE, padding=PADDING, dilation=DILATION)
    y = deform_conv2d(*tensors, mask=torch.from_numpy(mask), **options)
    expected = deform_conv2d(x, offset, weight, bias, mask=mask, **options)
    np.testing.assert_array_equal(y, expected)


def test_tensors_that_jax_does_not_take_are_described_by_dtype_and_shape():
    torch = pytest.importorskip("torch")
    message = (
        r"input must be an array \[N, C, H, W\], got Tensor of torch.bfloat16, shape \(1, 6, 5, 4\)"
    )
    with pytest.raises(ValueError, match=message):
        deform_conv2d(torch.ones(1, 6, 5, 4, dtype=torch.bfloat16), None, None)


@pytest.mark.parametrize("pair", [np.int64(2), [2, 2], np.array([2, 2]), (np.int32(2), 2)])
def test_options_may_be_of_numpy(pair):
    x, weight, offset = jnp.ones((1, 2, 5, 6)), jnp.ones((3, 2, 2, 2)), jnp.zeros((1, 8, 4, 4))
    y = deform_conv2d(x, offset, weight, stride=pair, padding=pair, dilation=pair)
    assert y.shape == (1, 3, 4, 4)


def test_images_of_free_size_export():
    scope = jax.export.SymbolicScope(["h >= 4", "w >= 4"])
    free = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), jnp.float32)
        for shape in ("b, 6, h, w", "b, 36, p, q")
    ]
    kernel = jnp.ones((4, 3, 3, 2), jnp.float32)
    compute = jax.jit(lambda x, offset: deform_conv2d(x, offset, kernel))
    checks = jax_dcn.export_disabled_checks
    program = jax.export.export(compute, disabled_checks=checks)(*free)
    random = np.random.default_rng(0)
    x, offset = (random.normal(size=s).astype("float32") for s in ((2, 6, 7, 5), (2, 36, 5, 4)))
    np.testing.assert_allclose(program.call(x, offset), compute(x, offset), rtol=1e-6)
