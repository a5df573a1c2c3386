# SPDX-License-Identifier: MIT
"""What `deform_conv2d` computes: values, derivatives, edges."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jax_dcn import deform_conv2d, reference
from jax_dcn._src.operator import blockwise as _blockwise
from tests.deform_conv2d.cases import ARGUMENTS, CASES, Case
from tests.laws.loops import deform_conv2d as loop_deform_conv2d

# Largest difference that rounding explains, relative to the largest value: the sums have at most
# a few thousand terms.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}

CASE = {case.name: case for case in CASES}


def assert_close(actual, expected, dtype: str, name: str = "") -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
    scale = max(1e-30, np.max(np.abs(expected), initial=0))
    error = np.max(np.abs(np.asarray(actual) - np.asarray(expected)), initial=0) / scale
    assert error <= TOLERANCE[dtype], f"{name}: {error}"


def function_of(case: Case, arrays, implementation: str | None = None):
    """The operator as a function of the arrays that are there, and these arrays."""
    present = tuple(n for n, a in zip(ARGUMENTS, arrays, strict=True) if a is not None)

    def f(*values):
        named = dict(zip(present, values, strict=True))
        return deform_conv2d(**named, **case.options, implementation=implementation)

    return f, tuple(jnp.asarray(a) for a in arrays if a is not None), present


def reference_of(case: Case):
    """Plain `jax.numpy`, differentiated by JAX: none of the primitives' rules take part."""

    def f(x, kernel, offset, *rest):
        mask = rest[0] if case.modulated else jnp.zeros((*offset.shape[:-2], 0), offset.dtype)
        return reference.deform_conv2d(x, kernel, offset, mask, rest[-1], geometry=case.geometry)

    return f


@functools.partial(jax.jit, static_argnums=0)
def value_tangent_gradients(f, arrays, dots, grad_y):
    y, vjp = jax.vjp(f, *arrays)
    return y, jax.jvp(f, arrays, dots)[1], vjp(grad_y)


@functools.cache
def expected_value_tangent_gradients(case: Case, dtype: str):
    arrays, dots = (function_of(case, case.arrays(dtype, seed))[1] for seed in (0, 7))
    return value_tangent_gradients(reference_of(case), arrays, dots, case.cotangent(dtype))


@pytest.mark.parametrize(
    ("implementation", "dtype"), [("native", "float64"), ("native", "float32"), ("xla", "float64")]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_tangent_and_gradients_match_reference(case, implementation, dtype):
    f, arrays, present = function_of(case, case.arrays(dtype), implementation)
    dots = function_of(case, case.arrays(dtype, seed=7))[1]
    y, y_dot, grads = value_tangent_gradients(f, arrays, dots, case.cotangent(dtype))
    expected = expected_value_tangent_gradients(case, dtype)
    assert_close(y, expected[0], dtype, "y")
    assert_close(y_dot, expected[1], dtype, "y_dot")
    for name, grad, expected_grad in zip(present, grads, expected[2], strict=True):
        assert_close(grad, expected_grad, dtype, f"gradient of {name}")


# The reference rounds once, at the end, and so must the kernels: where a sum in float32 lies close to
# the middle of two 16-bit numbers the two may round apart, and sums in float32 themselves differ.
HALF_MULTIPLE = 2.0


def half_arrays(case: Case, half: str, seed: int = 0):
    """Images, kernel and bias in 16 bits; offsets and masks wider, as they may be."""
    x, kernel, offset, mask, bias = case.arrays("float32", seed)
    return x.astype(half), kernel.astype(half), offset, mask, bias.astype(half)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "every_option", "legacy", "depthwise", "wide"])
def test_error_in_16_bits_is_that_of_rounding(name, half):
    case = CASE[name]
    arrays, dots = half_arrays(case, half), half_arrays(case, half, seed=7)
    grad_y = case.cotangent().astype(half)

    def run(implementation, dtype=None):
        widen = lambda values: tuple(v if dtype is None else v.astype(dtype) for v in values)
        f, primals, _ = function_of(case, widen(arrays), implementation)
        tangents = tuple(map(jnp.asarray, widen(dots)))
        return value_tangent_gradients(f, primals, tangents, *widen([grad_y]))

    exact, expected, actual = run("xla", "float64"), run("xla"), run("native")
    leaves = zip(*map(jax.tree.leaves, (exact, expected, actual)), strict=True)
    for exact_leaf, expected_leaf, actual_leaf in leaves:
        assert actual_leaf.dtype == expected_leaf.dtype
        error = jnp.max(jnp.abs(actual_leaf.astype("float64") - exact_leaf))
        own_error = jnp.max(jnp.abs(expected_leaf.astype("float64") - exact_leaf))
        assert error <= HALF_MULTIPLE * own_error


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_narrow_offsets_are_read_in_float32(half, implementation):
    case = CASE["plain"]
    x, kernel, offset, mask, bias = (a.astype(half) for a in case.arrays())
    f = functools.partial(deform_conv2d, **case.options, implementation=implementation)
    narrow = f(x, kernel, offset, mask, bias)
    wide = f(x, kernel, offset.astype("float32"), mask.astype("float32"), bias)
    assert narrow.dtype == half and (narrow == wide).all()


@pytest.mark.parametrize(
    "wrt", [("x",), ("kernel",), ("offset",), ("mask",), ("bias",), ("x", "mask")]
)
def test_each_derivative_alone_equals_its_part_of_all(wrt, implementation):
    case = CASE["every_option"]
    f, arrays, present = function_of(case, case.arrays("float64"), implementation)
    argnums = tuple(present.index(name) for name in wrt)
    loss = lambda *a: jnp.vdot(f(*a), case.cotangent("float64"))
    alone = jax.grad(loss, argnums)(*arrays)
    together = jax.grad(loss, range(len(arrays)))(*arrays)
    for name, index, grad in zip(wrt, argnums, alone, strict=True):
        assert_close(grad, together[index], "float64", name)
    dots = function_of(case, case.arrays("float64", seed=3))[1]
    some = tuple(d if i in argnums else jnp.zeros_like(d) for i, d in enumerate(dots))
    tangent = jax.jvp(lambda *a: f(*_replaced(arrays, argnums, a)), *_taken(argnums, arrays, dots))
    assert_close(tangent[1], jax.jvp(f, arrays, some)[1], "float64")


def _replaced(arrays, argnums, values):
    return [dict(zip(argnums, values, strict=True)).get(i, a) for i, a in enumerate(arrays)]


def _taken(argnums, *tuples):
    return [tuple(values[i] for i in argnums) for values in tuples]


@pytest.mark.parametrize("name", ["plain", "every_option", "legacy", "depthwise", "version_1"])
def test_value_matches_loops_over_everything(name, implementation):
    case = CASE[name]
    arrays = case.arrays("float64")
    (top, _), (left, _) = case.geometry.padding
    expected = loop_deform_conv2d(
        *arrays,
        strides=case.strides,
        padding=(top, left),
        kernel_dilation=case.kernel_dilation,
        groups=case.feature_group_count,
        legacy=case.boundary == "legacy",
    )
    y = deform_conv2d(*arrays, **case.options, implementation=implementation)
    assert_close(y, expected, "float64")


@pytest.mark.parametrize("name", ["plain", "every_option", "wide", "depthwise", "empty_batch"])
def test_zero_offset_equals_ordinary_convolution(name, implementation):
    case = CASE[name]
    x, kernel, offset, mask, bias = case.arrays("float64")
    expected = case.ordinary_convolution(x, kernel)
    options = dict(**case.options, implementation=implementation)
    for ones in (None, np.ones_like(mask)):
        y = deform_conv2d(x, kernel, np.zeros_like(offset), ones, **options)
        assert_close(y, expected, "float64")
    y = deform_conv2d(x, kernel, np.zeros_like(offset), None, bias, **options)
    assert_close(y, expected + bias[None, None, None, :], "float64")


@pytest.mark.parametrize("shift", [(1, 0), (-2, 3), (0, -1)])
def test_whole_pixel_offset_equals_shifted_image(shift, implementation):
    case = CASE["plain"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    moved = np.zeros_like(x)
    height, width = case.image
    for y, column in np.ndindex(height, width):
        source = y + shift[0], column + shift[1]
        if 0 <= source[0] < height and 0 <= source[1] < width:
            moved[:, y, column] = x[:, source[0], source[1]]
    options = dict(strides=1, padding="VALID", implementation=implementation)
    taps = (2, height - 2, width - 1)
    zeros = np.zeros_like(offset)[:, : taps[1], : taps[2]]
    mask = mask[:, : taps[1], : taps[2]]
    displaced = deform_conv2d(x, kernel, zeros + np.asarray(shift, float), mask, bias, **options)
    assert_close(displaced, deform_conv2d(moved, kernel, zeros, mask, bias, **options), "float64")


HEIGHT = 4
# Position -> (pixels and weights of the value, derivative along the position); from `api.md`'s rule,
# that is from the zero-extended image, by hand.
PADDED = {
    -1.5: ({}, {}),
    -1.0: ({}, {}),
    -0.25: ({0: 0.75}, {0: 1.0}),
    0.0: ({0: 1.0}, {1: 1.0, 0: -1.0}),
    1.25: ({1: 0.75, 2: 0.25}, {2: 1.0, 1: -1.0}),
    HEIGHT - 1.0: ({3: 1.0}, {3: -1.0}),
    HEIGHT - 0.25: ({3: 0.25}, {3: -1.0}),
    float(HEIGHT): ({}, {}),
    HEIGHT + 0.5: ({}, {}),
}
LEGACY = PADDED | {-0.25: ({}, {}), 3.0: ({3: 1.0}, {}), 3.75: ({3: 1.0}, {})}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("boundary", ["padded", "legacy"])
@pytest.mark.parametrize("position", PADDED)
def test_edges_follow_the_rule(position, boundary, axis, implementation):
    pixels, slopes = (PADDED if boundary == "padded" else LEGACY)[position]
    line = np.array([2.0, 3.0, 5.0, 7.0])
    shape = [1, 1, 1, 1]
    shape[1 + axis] = HEIGHT
    x, one = line.reshape(shape), np.ones((1, 1, 1, 1))
    offset = np.zeros((1, 1, 1, 1, 1, 2))
    offset[..., axis] = position

    def f(x, offset, mask):
        # The stride leaves one output position.
        y = deform_conv2d(
            x,
            one,
            offset,
            mask,
            strides=HEIGHT,
            padding=0,
            boundary=boundary,
            implementation=implementation,
        )
        return y.reshape(())

    mask = np.ones((1, 1, 1, 1, 1))
    value, (grad_x, grad_offset, grad_mask) = jax.value_and_grad(f, (0, 1, 2))(x, offset, mask)
    expected = sum(weight * line[i] for i, weight in pixels.items())
    assert value == expected and grad_mask.reshape(()) == expected
    assert grad_x.ravel().tolist() == [pixels.get(i, 0.0) for i in range(HEIGHT)]
    slope = sum(weight * line[i] for i, weight in slopes.items())
    assert grad_offset[..., axis].reshape(()) == slope


@pytest.mark.parametrize("name", ["plain", "every_option", "legacy", "depthwise", "one_by_one"])
def test_gradients_match_finite_differences(name, implementation):
    case = CASE[name]
    arrays = case.arrays("float64")
    # The function has corners at whole coordinates; differences are taken between them.
    fraction = np.random.default_rng(5).uniform(0.1, 0.9, arrays[2].shape)
    arrays = (*arrays[:2], np.floor(arrays[2]) + fraction, *arrays[3:])
    f, arrays, _ = function_of(case, arrays, implementation)
    jax.test_util.check_grads(f, arrays, order=1, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_transpose_is_the_adjoint(case, implementation):
    f, arrays, _ = function_of(case, case.arrays("float64"), implementation)
    dots = function_of(case, case.arrays("float64", seed=11))[1]
    grad_y = case.cotangent("float64")
    vjp = jax.vjp(f, *arrays)[1]
    y_dot = jax.jvp(f, arrays, dots)[1]
    backward = sum(jnp.vdot(dot, grad) for dot, grad in zip(dots, vjp(grad_y), strict=True))
    size = max(1.0, float(jnp.linalg.norm(y_dot.ravel()) * jnp.linalg.norm(grad_y.ravel())))
    assert abs(jnp.vdot(y_dot, grad_y) - backward) <= 1e-12 * size


def test_leading_axes_are_batch_axes(implementation):
    case = CASE["every_option"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    f = functools.partial(deform_conv2d, **case.options, implementation=implementation)
    y = f(x, kernel, offset, mask, bias)
    assert_close(f(x[0], kernel, offset[0], mask[0], bias), y[0], "float64")
    nested = lambda a: a[None, :, None]
    y_nested = f(nested(x), kernel, nested(offset), nested(mask), bias)
    assert_close(y_nested, nested(y), "float64")


def test_mask_of_ones_changes_nothing(implementation):
    case = CASE["plain"]
    x, kernel, offset, mask, bias = case.arrays("float64")
    f = functools.partial(deform_conv2d, **case.options, implementation=implementation)
    assert_close(
        f(x, kernel, offset, np.ones_like(mask), bias), f(x, kernel, offset, None, bias), "float64"
    )


def test_reference_in_blocks_equals_reference_at_once(monkeypatch):
    case = CASE["every_option"]
    arrays = case.arrays("float64")
    f = reference_of(case)
    loss = jax.value_and_grad(lambda *a: (f(*a) ** 2).sum(), range(5))
    at_once = jax.jit(loss)(*arrays)
    for block_bytes in (1, 2**13):  # a row, and a few images, at a time
        monkeypatch.setattr(_blockwise, "_BLOCK_BYTES", block_bytes)
        blocks = jax.jit(lambda *a: loss(*a))(*arrays)  # a new function is traced anew
        for block, whole in zip(jax.tree.leaves(blocks), jax.tree.leaves(at_once), strict=True):
            assert_close(block, whole, "float64")


def test_reference_memory_does_not_grow_with_the_batch():
    case = Case("large_batch", 4096, (16, 16), 32, 16)
    shapes = (
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in (
            (case.batch, *case.image, case.channels),
            (*case.kernel, case.channels, case.features),
            (case.batch, *case.output, 1, 9, 2),
            (case.batch, *case.output, 1, 9),
            (case.features,),
        )
    )
    loss = jax.jit(jax.grad(lambda *a: (reference_of(case)(*a) ** 2).sum(), range(5)))
    memory = loss.lower(*shapes).compile().memory_analysis()
    columns = case.batch * 16 * 16 * 9 * case.channels * 4
    assert memory.temp_size_in_bytes < columns / 2  # of this, three quarters are copies of operands
