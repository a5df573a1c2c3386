# SPDX-License-Identifier: MIT
"""Laws of `deform_conv2d` on problems that hypothesis draws."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import Case
from tests.deform_conv2d.test_deform_conv2d import (
    TOLERANCE,
    function_of,
    reference_of,
    value_tangent_gradients,
)

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


@given(problems(), st.sampled_from(["float64", "float32"]))
def test_native_equals_reference(case, dtype):
    f, arrays, _ = function_of(case, case.arrays(dtype), "native")
    dots, grad_y = function_of(case, case.arrays(dtype, seed=2))[1], case.cotangent(dtype)
    actual = value_tangent_gradients(f, arrays, dots, grad_y)
    close(
        actual, value_tangent_gradients(reference_of(case), arrays, dots, grad_y), TOLERANCE[dtype]
    )


@given(problems())
def test_transpose_is_the_adjoint_of_the_tangent(case):
    f, arrays, _ = function_of(case, case.arrays("float64"))
    dots, grad_y = function_of(case, case.arrays("float64", seed=2))[1], case.cotangent("float64")
    _, y_dot, gradients = value_tangent_gradients(f, arrays, dots, grad_y)
    products = [jnp.vdot(d, g) for d, g in zip(dots, gradients, strict=True)]
    size = jnp.linalg.norm(y_dot.ravel()) * jnp.linalg.norm(grad_y.ravel())
    close(sum(products) / (1 + size), jnp.vdot(y_dot, grad_y) / (1 + size))


@given(problems())
def test_vmap_equals_loop(case):
    f, _, present = function_of(case, case.arrays("float64"))
    batches = [function_of(case, case.arrays("float64", seed))[1] for seed in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*batches, strict=True)]
    loss = lambda *a: jnp.sum(jnp.sin(f(*a)))
    both = jax.jit(jax.value_and_grad(loss, range(len(present))))
    looped = jax.tree.map(lambda *a: np.stack(a), *(both(*arrays) for arrays in batches))
    close(jax.jit(jax.vmap(both))(*stacked), looped)


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
    f, arrays, present = function_of(case, case.arrays("float64"))
    shared = [i for i, name in enumerate(present) if name in ("kernel", "bias")]
    loss = lambda *a: jnp.sum(jnp.sin(f(*a)))
    gradient = jax.jit(jax.grad(loss, shared))
    gradients = gradient(*arrays)
    single = lambda n: [a if i in shared else a[n : n + 1] for i, a in enumerate(arrays)]
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
