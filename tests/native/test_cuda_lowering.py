# SPDX-License-Identifier: MIT
"""What programs for CUDA become, lowered on a machine that need not have a GPU."""

import functools
import math
import re

import jax
import jax.export
import jax.numpy as jnp
import pytest

from jax_dcn import deform_aggregate, deform_conv2d, deform_roi_align, deform_roi_pool
from jax_dcn._src.deform_conv2d import cost, fused
from jax_dcn._src.operator import libraries
from tests.deform_conv2d.cases import ARGUMENTS, Case

pytestmark = pytest.mark.skipif(
    "cuda" in libraries._unavailable, reason=libraries._unavailable.get("cuda", "")
)
CASE = Case("layer", 2, (17, 13), 24, 40, kernel=(3, 2), offset_groups=3)
FUSED = Case("fused_layer", 2, (17, 13), 64, 128, kernel=(3, 2), offset_groups=2)
CHUNK_BYTES = 40e6


def lowered(f, *arguments, **options) -> str:
    """The program for CUDA, as text."""
    traced = jax.jit(f, **options).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def fused_path(monkeypatch):
    """The fused kernels run wherever they can, whatever the cost model says of a GPU."""
    monkeypatch.setenv(cost.VARIABLE, "fused")


def targets(text: str) -> list[str]:
    return re.findall(r"custom_call @jax_dcn_deform_conv2d_(\w+)", text)


def abstract(case: Case, dtype: str) -> tuple:
    """Arrays without data, so that large problems cost nothing."""
    taps = math.prod(case.kernel)
    samples = (case.batch, *case.output, case.offset_groups, taps)
    group_channels = case.channels // case.feature_group_count
    shapes = dict(
        x=(case.batch, *case.image, case.channels),
        kernel=(*case.kernel, group_channels, case.features),
        offset=(*samples, 2),
        mask=samples,
        bias=(case.features,),
    )
    wide = {"offset": "float32", "mask": "float32"}
    return tuple(
        jax.ShapeDtypeStruct(shape, wide.get(name, dtype)) for name, shape in shapes.items()
    )


def operator(case: Case, implementation: str | None = None):
    return functools.partial(deform_conv2d, **case.options, implementation=implementation)


def loss(case: Case):
    return lambda *arrays: jnp.sum(operator(case)(*arrays).astype(jnp.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_is_one_call_and_one_product(dtype):
    text = lowered(operator(CASE), *abstract(CASE, dtype))
    assert targets(text) == ["columns"]
    assert text.count("dot_general") == 1 and "transpose" not in text and "while" not in text


def test_all_gradients_are_one_call_and_three_products():
    gradients = jax.grad(loss(CASE), argnums=range(5))
    text = lowered(gradients, *abstract(CASE, "float32"))
    # The result of the operator is not needed, and nothing is left of it but its call.
    assert targets(text).count("columns_backward") == 1
    backward = text[text.index("columns_backward") :]
    assert "output_operand_aliases = [#stablehlo.output_operand_alias" in backward
    assert "stablehlo.transpose" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_layer_is_one_call(fused_path, dtype):
    text = lowered(operator(FUSED), *abstract(FUSED, dtype))
    assert targets(text) == ["forward"] and not re.search("dot_general|transpose|while", text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_gradients_are_two_calls(fused_path, dtype):
    text = lowered(jax.grad(loss(FUSED), argnums=1), *abstract(FUSED, dtype))
    assert targets(text) == ["grad_kernel"] and "dot_general" not in text
    text = lowered(jax.grad(loss(FUSED), argnums=range(5)), *abstract(FUSED, dtype))
    assert sorted(targets(text)) == ["grad_kernel", "samples_backward"]
    assert not re.search("dot_general|transpose", text)


def test_fused_gradients_of_offset_and_mask_hold_no_columns(fused_path):
    large = Case("large", 37, (61, 59), 256, 256)
    gradients = jax.grad(loss(large), argnums=(2, 3))
    text = lowered(gradients, *abstract(large, "bfloat16"))
    assert targets(text) == ["samples_backward"] and "while" not in text
    results = re.search(r"@jax_dcn_deform_conv2d_samples_backward.*-> (.*)", text)[1]
    assert len(re.findall("tensor<", results)) == 2


def test_the_cost_model_is_asked_and_can_be_overridden(monkeypatch):
    case = Case("wide_layer", 2, (17, 13), 256, 256)

    def paths() -> list[str]:
        # New functions, which JAX has not lowered yet.
        programs = operator(case), jax.grad(loss(case), argnums=(0, 1))
        return [targets(lowered(f, *abstract(case, "bfloat16")))[-1] for f in programs]

    monkeypatch.setattr(cost, "gpu_here", lambda: cost.GPUS[90])
    assert paths() == ["columns", "columns_backward"]
    monkeypatch.setattr(cost, "gpu_here", lambda: cost.GPUS[89])
    assert paths() == ["forward", "samples_backward"]
    monkeypatch.setenv(cost.VARIABLE, "columns")
    assert paths() == ["columns", "columns_backward"]
    monkeypatch.setenv(cost.VARIABLE, "fast")
    with pytest.raises(ValueError, match="JAX_DCN_CUDA_PATH must be one of"):
        paths()


@pytest.mark.parametrize(
    ("mix", "expected", "products"),
    [
        ("kernel=fused,samples=columns", ["columns_backward", "grad_kernel"], 1),
        ("kernel=columns,samples=fused", ["columns", "samples_backward"], 1),
    ],
)
def test_gradients_take_the_paths_of_their_parts(monkeypatch, mix, expected, products):
    monkeypatch.setenv(cost.VARIABLE, f"forward=fused,{mix}")
    text = lowered(jax.grad(loss(FUSED), argnums=range(5)), *abstract(FUSED, "bfloat16"))
    assert sorted(targets(text)) == expected and text.count("dot_general") == products


def test_a_backward_pass_can_be_called_again(fused_path):
    def gradients(*arrays):
        primals = dict(zip(ARGUMENTS, arrays[:4], strict=False))
        backward = fused.MixedBackward(primals, tuple(primals), FUSED.geometry, None)
        return backward(arrays[4]), backward(arrays[4])

    grad_y = jax.ShapeDtypeStruct((2, *FUSED.output, 128), "bfloat16")
    first, second = jax.eval_shape(gradients, *abstract(FUSED, "bfloat16")[:4], grad_y)
    assert first == second and set(first) == set(ARGUMENTS[:4])


def test_full_precision_is_not_fused(fused_path):
    f = functools.partial(operator(FUSED), precision=jax.lax.Precision.HIGHEST)
    assert targets(lowered(f, *abstract(FUSED, "float32"))) == ["columns"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x", ["columns_backward"]),
        ("kernel", ["columns"]),
        ("offset", ["columns_backward"]),
        ("mask", ["columns_backward"]),
        ("bias", []),
    ],
)
def test_gradients_that_are_not_asked_for_cost_nothing(name, expected):
    gradient = jax.grad(loss(CASE), argnums=ARGUMENTS.index(name))
    text = lowered(gradient, *abstract(CASE, "float32"))
    assert targets(text) == expected
    # Only the gradient of x needs the lists of samples by pixel, and their memory.
    assert bool(re.search(r", tensor<\d+xi32>\)$", text, re.MULTILINE)) == (name == "x")
    # One product makes the gradient of the columns, or the one of the kernel.
    assert text.count("dot_general") == len(expected)


def test_a_tangent_is_one_call_and_one_product():
    def tangent(*arrays):
        return jax.jvp(operator(CASE), arrays, arrays)[1]

    text = lowered(tangent, *abstract(CASE, "float32"))
    assert targets(text) == ["columns_jvp"] and text.count("dot_general") == 1


LARGE = [
    Case("batch", 32, (28, 28), 128, 128),
    Case("odd_batch", 37, (28, 28), 100, 128),
    Case("one_large_image", 1, (101, 167), 256, 256),
    Case("grouped", 5, (61, 59), 96, 64, offset_groups=8, feature_group_count=4),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_columns_and_lists_are_bounded_whatever_the_size(case, dtype):
    gradients = jax.value_and_grad(loss(case), argnums=range(5))
    text = lowered(gradients, *abstract(case, dtype))
    assert "stablehlo.while" in text  # more than one chunk
    held = 0
    for name, call in re.findall(r"custom_call @jax_dcn_deform_conv2d_(\w+)_backward(.*)", text):
        operands, results = call.rsplit("->", 1)
        # The gradient of the columns, in whose place the columns may be, and the lists.
        for text, axes in ((operands if name == "columns" else results, 5), (results, 1)):
            for shape, kind in re.findall(r"tensor<([\dx]+)x(bf16|f32|i32)>", text):
                sizes = tuple(map(int, shape.split("x")))
                if len(sizes) == axes and sizes[-2:] != (case.offset_groups, 9):
                    held += math.prod(sizes) * (2 if kind == "bf16" else 4)
    assert 0.5 * CHUNK_BYTES < held <= CHUNK_BYTES


def test_double_precision_lowers():
    assert targets(lowered(operator(CASE), *CASE.arrays("float64"))) == ["columns"]


def test_precision_reaches_the_product():
    f = functools.partial(operator(CASE), precision=jax.lax.Precision.HIGHEST)
    assert "HIGHEST" in lowered(f, *abstract(CASE, "float32"))


def test_xla_is_obeyed():
    assert targets(lowered(operator(CASE, "xla"), *abstract(CASE, "float32"))) == []


def test_vmap_makes_no_loop():
    f = jax.vmap(operator(CASE), in_axes=(0, 0, None, None, None))
    arrays = abstract(CASE, "float32")
    mapped = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in arrays[:2]]
    text = lowered(f, *mapped, *arrays[2:])
    assert targets(text) == ["columns"] and "stablehlo.while" not in text


def test_one_program_lowers_for_cpu_and_cuda():
    exported = jax.export.export(
        jax.jit(operator(CASE)),
        platforms=("cpu", "cuda"),
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(f"jax_dcn_deform_conv2d_{target}")
            for target in ("forward", "columns")
        ],
    )(*abstract(CASE, "float32"))
    assert {"forward", "columns"} <= set(targets(exported.mlir_module()))


def test_no_gpu_is_needed_to_load_the_kernels():
    assert libraries.describe("cuda").startswith("CUDA 1")


def test_region_pooling_is_one_call_each_way():
    shapes = (2, 9, 11, 8), (5, 5), (5, 3, 3, 2, 2), (5, 3, 3)
    arrays = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    options = dict(spatial_scale=0.25, pooled_size=3, output_dim=8, trans_std=0.1)
    f = functools.partial(deform_roi_pool, **options)
    gradients = jax.grad(lambda *a: jnp.sum(f(*a)), argnums=(0, 2, 3))
    for function, called in ((f, "forward"), (gradients, "backward")):
        text = lowered(function, *arrays)
        assert re.findall(r"custom_call @jax_dcn_deform_roi_pool_(\w+)", text)[-1:] == [called]
        assert text.count(f"deform_roi_pool_{called}(") == 1 and "transpose" not in text


@pytest.mark.parametrize("image", [(2828, 7), (3, 2)])
def test_region_pooling_that_does_not_fit_on_cuda_is_xlas(image):
    arrays = jnp.zeros((1, *image, 1)), jnp.zeros((2, 5))
    samples = 0 if sum(image) > 2834 else 709
    f = functools.partial(
        deform_roi_align, spatial_scale=0.5, pooled_size=2, sampling_ratio=samples
    )
    assert "@jax_dcn" not in lowered(f, *arrays)
    gradient = jax.grad(lambda x, rois: jnp.sum(f(x, rois)))
    assert "@jax_dcn" not in lowered(gradient, *arrays)
    with pytest.raises(NotImplementedError, match="do not fit into shared memory: take fewer"):
        lowered(functools.partial(f, implementation="native"), *arrays)


@pytest.mark.parametrize("pooled", [214, 215])
def test_region_pooling_whose_bins_cuda_does_not_count_is_xlas(pooled):
    arrays = jnp.zeros((1, 3, 2, 1)), jnp.zeros((1, 5)), jnp.zeros((1, 215, 215, 1, 2))
    options = dict(spatial_scale=0.5, pooled_size=pooled, output_dim=1, trans_std=0.1)
    f = functools.partial(deform_roi_pool, part_size=215, **options)
    assert ("@jax_dcn" in lowered(f, *arrays)) == (pooled == 214)


def aggregation(shapes, points, queries: int, groups: int = 3, channels: int = 12):
    """The operator, and its operands without data."""
    sizes = (2, queries, groups, sum(points))
    pixels = sum(map(math.prod, shapes))
    arrays = [
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in ((2, pixels, channels), (*sizes, 2), sizes)
    ]
    return functools.partial(deform_aggregate, shapes=shapes, points=points), arrays


def aggregation_gradients(f, argnums=(0, 1, 2)):
    return jax.grad(lambda *a: jnp.sum(f(*a)), argnums=argnums)


def aggregation_calls(text: str) -> list[str]:
    return re.findall(r"custom_call @jax_dcn_deform_aggregate_(\w+)", text)


def test_aggregation_is_one_call_each_way():
    f, arrays = aggregation(((5, 7), (4, 2)), (3, 2), 11)
    tangent = lambda *a: jax.jvp(f, a, a)[1]
    for function, called in (
        (f, "forward"),
        (tangent, "jvp"),
        (aggregation_gradients(f), "backward"),
    ):
        text = lowered(function, *arrays)
        assert aggregation_calls(text)[-1:] == [called]
        assert text.count(f"deform_aggregate_{called}(") == 1
        assert not re.search("transpose|gather|while", text)


@pytest.mark.parametrize("argument", range(3))
def test_aggregation_lists_samples_for_the_gradient_of_x_alone(argument):
    f, arrays = aggregation(((5, 7), (4, 2)), (3, 2), 11)
    text = lowered(aggregation_gradients(f, argument), *arrays)
    lists = re.search(r", tensor<\d+xi32>\)$", text, re.MULTILINE)
    assert aggregation_calls(text)[-1] == "backward" and bool(lists) == (argument == 0)


def test_aggregation_of_an_encoder_holds_bounded_lists():
    maps = (100, 167), (50, 84), (25, 42), (13, 21)
    f, arrays = aggregation(maps, (4,) * 4, sum(map(math.prod, maps)), 8, 256)
    text = lowered(aggregation_gradients(f), *arrays)
    (words,) = re.findall(r", tensor<(\d+)xi32>\)$", text, re.MULTILINE)
    assert 0.4 * CHUNK_BYTES < 4 * int(words) <= CHUNK_BYTES


def test_aggregation_of_too_many_maps_on_cuda_is_xlas():
    f, arrays = aggregation(((2, 3),) * 17, (1,) * 17, 5)
    assert not aggregation_calls(lowered(f, *arrays))
    with pytest.raises(NotImplementedError, match="at most 16 maps"):
        lowered(functools.partial(f, implementation="native"), *arrays)
