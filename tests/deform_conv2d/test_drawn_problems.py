# SPDX-License-Identifier: MIT
"""Laws of `deform_conv2d` on problems that hypothesis draws."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import Case
from tests.deform_conv2d.row import OPERATOR, plain_jax
from tests.laws.operator import TOLERANCE

# Deterministic, so that a change fails or passes for its own reasons; the environment variable
# HYPOTHESIS_PROFILE=search widens the search.
settings.register_profile("suite", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("search", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pairs(most: int):
    return st.tuples(st.integers(1, most), st.integers(1, most))


@st.composite
def problems(draw) -> Case:
    feature_groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, dilation = draw(pairs(3)), draw(pairs(2))
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(pads, pads)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    extra = draw(pairs(6))
    return Case(
        "drawn",
        batch=draw(st.integers(0, 3)),
        image=(reach[0] + extra[0] - 1, reach[1] + extra[1] - 1),
        channels=feature_groups * offset_groups * draw(st.integers(1, 9)),
        features=feature_groups * draw(st.integers(1, 19)),
        kernel=kernel,
        strides=draw(pairs(3)),
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=feature_groups,
        offset_groups=offset_groups,
        modulated=draw(st.booleans()),
        boundary=draw(st.sampled_from(["padded", "legacy"])),
    )


def close(actual, expected, tolerance=TOLERANCE["float64"]) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, np.max(np.abs(e), initial=0))
        assert np.max(np.abs(np.asarray(a) - np.asarray(e)), initial=0) <= tolerance * scale


def derivatives(case: Case, dtype: str, f):
    arrays, dots = (case.arrays(dtype, seed) for seed in (0, 2))
    return dots, jax.jit(OPERATOR.derivatives(f))(arrays, dots, case.cotangent(dtype))


@given(problems(), st.sampled_from(["float64", "float32"]))
def test_native_equals_reference(case, dtype):
    _, actual = derivatives(case, dtype, case.function("native"))
    _, expected = derivatives(case, dtype, plain_jax(case))
    close(actual, expected, TOLERANCE[dtype])


@given(problems())
def test_transpose_is_the_adjoint_of_the_tangent(case):
    grad_y = case.cotangent("float64")
    dots, (_, y_dot, gradients) = derivatives(case, "float64", case.function())
    products = jax.tree.leaves(jax.tree.map(jnp.vdot, dots, gradients))
    size = jnp.linalg.norm(y_dot.ravel()) * jnp.linalg.norm(grad_y.ravel())
    close(sum(products) / (1 + size), jnp.vdot(y_dot, grad_y) / (1 + size))


@given(problems())
def test_vmap_equals_loop(case):
    batches = [case.arrays("float64", seed) for seed in range(3)]
    stack = lambda *arrays: np.stack(arrays)
    loss = lambda arrays: jnp.sum(jnp.sin(case.function()(*arrays)))
    both = jax.jit(jax.value_and_grad(loss))
    looped = jax.tree.map(stack, *(both(arrays) for arrays in batches))
    close(jax.jit(jax.vmap(both))(jax.tree.map(stack, *batches)), looped)


@given(problems())
def test_operator_is_linear_in_image_kernel_and_mask(case):
    x, kernel, offset, mask, _ = case.arrays("float64")
    other_x, other_kernel, _, other_mask, _ = case.arrays("float64", seed=2)
    f = jax.jit(lambda x, kernel, mask: deform_conv2d(x, kernel, offset, mask, **case.options))
    close(f(x + 2 * other_x, kernel, mask), f(x, kernel, mask) + 2 * f(other_x, kernel, mask))
    close(f(x, kernel + other_kernel, mask), f(x, kernel, mask) + f(x, other_kernel, mask))
    if mask is not None:
        close(f(x, kernel, mask - other_mask), f(x, kernel, mask) - f(x, kernel, other_mask))


@given(problems())
def test_gradient_of_a_batch_is_the_sum_of_its_images_gradients(case):
    arrays, shared = case.arrays("float64"), (1, 4)  # kernel and bias
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(case.function()(*a))), shared))
    gradients = gradient(*arrays)
    single = lambda n: [
        a if a is None or i in shared else a[n : n + 1] for i, a in enumerate(arrays)
    ]
    images = [gradient(*single(n)) for n in range(case.batch)]
    totals = [
        sum((np.asarray(g[i]) for g in images), np.zeros(t.shape)) for i, t in enumerate(gradients)
    ]
    close(gradients, totals)


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_channels_in_a_group_does_not_matter(case, random):
    if case.feature_group_count > 1:
        return
    x, kernel, offset, mask, bias = case.arrays("float64")
    size = case.channels // case.offset_groups
    within = random.sample(range(size), size)
    order = [group * size + c for group in range(case.offset_groups) for c in within]
    f = lambda x, kernel: deform_conv2d(x, kernel, offset, mask, bias, **case.options)
    close(f(x[..., order], kernel[:, :, order]), f(x, kernel))
