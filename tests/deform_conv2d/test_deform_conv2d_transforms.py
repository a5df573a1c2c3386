# SPDX-License-Identifier: MIT
"""`deform_conv2d` under JAX's transformations."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_dcn import deform_conv2d, reference
from tests.deform_conv2d.cases import ARGUMENTS, CASES, Case

CASE = {case.name: case for case in CASES}
SMALL = Case(
    "small",
    batch=2,
    image=(4, 3),
    channels=4,
    features=6,
    kernel=(2, 1),
    strides=(1, 2),
    padding=((1, 0), (0, 1)),
    feature_group_count=2,
    offset_groups=4,
)


def assert_close(actual, expected, tolerance=1e-11) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(
            a, e, rtol=0, atol=tolerance * max(1, np.max(np.abs(e), initial=0))
        )


def operator(case: Case = SMALL, implementation: str | None = None):
    return functools.partial(deform_conv2d, **case.options, implementation=implementation)


def loss(case: Case = SMALL, implementation: str | None = None):
    weights = case.cotangent("float64")
    return lambda *arrays: jnp.vdot(jnp.sin(operator(case, implementation)(*arrays)), weights)


def primitives(jaxpr) -> list[str]:
    """Names of all the primitives in a program, those of inner programs included."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
        names += (name for value in inner if hasattr(value, "eqns") for name in primitives(value))
    return names


def ours(f, *arrays) -> list[str]:
    names = primitives(jax.make_jaxpr(f)(*arrays).jaxpr)
    return [name for name in names if name.startswith("deform_conv2d") or name in ("while", "scan")]


def test_gradient_is_one_forward_and_one_fused_backward():
    arrays = SMALL.arrays("float64")
    grad = jax.grad(loss(), range(5))
    assert ours(grad, *arrays) == ["deform_conv2d", "deform_conv2d_backward"]
    assert ours(jax.jit(grad), *arrays) == ["deform_conv2d", "deform_conv2d_backward"]


@pytest.mark.parametrize("argnums", [(0,), (1,), (2, 3), (4,), (0, 1, 2, 3, 4)])
def test_only_the_gradients_asked_for_are_computed(argnums):
    program = jax.make_jaxpr(jax.grad(loss(), argnums))(*SMALL.arrays("float64"))
    (backward,) = (e for e in program.eqns if e.primitive.name == "deform_conv2d_backward")
    assert backward.params["wrt"] == tuple(ARGUMENTS[i] for i in argnums)
    assert len(backward.outvars) == len(argnums)


def test_second_derivatives_match_reference():
    arrays = SMALL.arrays("float64")
    native, xla = loss(implementation="native"), loss(implementation="xla")
    dots = SMALL.arrays("float64", seed=3)

    def forward_over_reverse(f, arrays):
        return jax.jvp(jax.grad(f, range(5)), arrays, dots)[1]

    def reverse_over_reverse(f, arrays):
        product = lambda *a: sum(map(jnp.vdot, jax.grad(f, range(5))(*a), dots))
        return jax.grad(product, range(5))(*arrays)

    def reverse_over_forward(f, arrays):
        return jax.grad(lambda *a: jax.jvp(f, a, dots)[1], range(5))(*arrays)

    def plain(x, kernel, offset, mask, bias):  # differentiated by JAX alone, without our rules
        y = reference.deform_conv2d(x, kernel, offset, mask, bias, geometry=SMALL.geometry)
        return jnp.vdot(jnp.sin(y), SMALL.cotangent("float64"))

    expected = jax.jit(forward_over_reverse, static_argnums=0)(plain, arrays)
    for order in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        for f in (native, xla):
            assert_close(jax.jit(order, static_argnums=0)(f, arrays), expected)


def test_hessian_matches_differences_of_gradients(implementation):
    case = Case("tiny", 1, (3, 2), 2, 2, kernel=(1, 2), padding="SAME")
    x, kernel, offset, mask, bias = case.arrays("float64")
    offset = np.floor(offset) + np.random.default_rng(2).uniform(0.2, 0.8, offset.shape)
    f = lambda offset, mask: loss(case, implementation)(x, kernel, offset, mask, bias)
    hessian = jax.jit(jax.hessian(f, (0, 1)))(offset, mask)
    direction = np.random.default_rng(3).normal(size=offset.shape)
    step = 1e-6
    gradient = jax.jit(jax.grad(f, (0, 1)))
    ahead, behind = (
        gradient(offset + step * direction, mask),
        gradient(offset - step * direction, mask),
    )
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    products = [jnp.tensordot(h[0], direction, direction.ndim) for h in hessian]
    assert_close(products, differences, 1e-7)


def test_vjp_can_be_transposed_again(implementation):
    arrays = SMALL.arrays("float64")
    y, vjp = jax.vjp(operator(implementation=implementation), *arrays)
    dots = SMALL.arrays("float64", seed=3)
    (y_dot,) = jax.linear_transpose(vjp, y)(dots)
    assert_close(y_dot, jax.jvp(operator(implementation=implementation), arrays, dots)[1])


def stacked(seeds=(0, 1, 2)):
    return [
        np.stack(a) for a in zip(*(SMALL.arrays("float64", seed) for seed in seeds), strict=True)
    ]


@pytest.mark.parametrize(
    "names",
    [
        "x",
        "kernel",
        "offset",
        "mask",
        "bias",
        "x offset mask",
        "x kernel",
        "x kernel offset mask bias",
    ],
)
def test_vmap_equals_loop(names, implementation):
    in_axes = tuple(0 if name in names.split() else None for name in ARGUMENTS)
    arrays = [
        batch if axis == 0 else single
        for batch, single, axis in zip(stacked(), SMALL.arrays("float64"), in_axes, strict=True)
    ]

    def everything(*a):
        f = operator(implementation=implementation)
        y, vjp = jax.vjp(f, *a)
        return y, jax.jvp(f, a, SMALL.arrays("float64", seed=9))[1], vjp(jnp.cos(y))

    one = jax.jit(everything)
    looped = [
        one(*(a[i] if axis == 0 else a for a, axis in zip(arrays, in_axes, strict=True)))
        for i in range(3)
    ]
    mapped = jax.jit(jax.vmap(everything, in_axes))(*arrays)
    assert_close(mapped, jax.tree.map(lambda *a: np.stack(a), *looped))


@pytest.mark.parametrize("axes", [(1, 2, 0, 3, 1), (-1, 0, -2, 1, -1)])
def test_vmap_takes_any_axis(axes):
    moved = [np.moveaxis(a, 0, axis) for a, axis in zip(stacked(), axes, strict=True)]
    assert_close(jax.vmap(operator(), axes)(*moved), jax.vmap(operator())(*stacked()))


def test_nested_vmap_equals_loops(implementation):
    xs, kernels, offset, mask, bias = *stacked()[:2], *SMALL.arrays("float64")[2:]
    f = lambda x, kernel: operator(implementation=implementation)(x, kernel, offset, mask, bias)
    outer = jax.vmap(jax.vmap(f, (0, None)), (None, 0))(xs, kernels)
    looped = jnp.stack([jnp.stack([f(x, kernel) for x in xs]) for kernel in kernels])
    assert_close(outer, looped)


def test_vmap_makes_no_loop():
    everything = jax.vmap(operator())
    assert ours(everything, *stacked()) == ["deform_conv2d"]
    grads = jax.vmap(jax.grad(loss(), range(5)))
    assert ours(grads, *stacked()) == ["deform_conv2d", "deform_conv2d_backward"]


def test_vmap_of_images_is_a_batch_axis():
    f = jax.vmap(operator(), (0, None, 0, 0, None))
    x, kernel, offset, mask, bias = stacked()
    program = jax.make_jaxpr(f)(x, kernel[0], offset, mask, bias[0])
    (call,) = (e for e in program.eqns if e.primitive.name == "deform_conv2d")
    assert call.invars[0].aval.shape == (3, SMALL.batch, *SMALL.image, SMALL.channels)
    assert call.params["geometry"] == SMALL.geometry


def test_per_example_gradients_equal_loop(implementation):
    xs, offsets, masks = (stacked()[i] for i in (0, 2, 3))
    _, kernel, _, _, bias = SMALL.arrays("float64")
    grad = jax.grad(loss(implementation=implementation), (1, 4))
    f = jax.jit(lambda x, offset, mask: grad(x, kernel, offset, mask, bias))
    looped = [f(*a) for a in zip(xs, offsets, masks, strict=True)]
    assert_close(jax.vmap(f)(xs, offsets, masks), jax.tree.map(lambda *a: np.stack(a), *looped))


def test_checkpoint_scan_and_jit_change_nothing(implementation):
    arrays = SMALL.arrays("float64")
    plain = jax.grad(loss(implementation=implementation), range(5))
    expected = plain(*arrays)
    assert_close(jax.jit(plain)(*arrays), expected)
    checkpointed = jax.grad(jax.checkpoint(loss(implementation=implementation)), range(5))
    assert_close(jax.jit(checkpointed)(*arrays), expected)

    def scanned(*arrays):
        step = lambda total, batch: (total + loss(implementation=implementation)(*batch), None)
        return jax.lax.scan(step, 0.0, jax.tree.map(lambda a: jnp.stack([a, a]), arrays))[0]

    assert_close(
        jax.jit(jax.grad(scanned, range(5)))(*arrays), jax.tree.map(lambda g: 2 * g, expected)
    )


def test_checkpoint_policy_can_name_the_output():
    policy = jax.checkpoint_policies.save_only_these_names("deform_conv2d")
    saved = jax.checkpoint(loss(), policy=policy)
    arrays = SMALL.arrays("float64")
    assert ours(jax.grad(saved, range(5)), *arrays).count("deform_conv2d") == 1
    unsaved = jax.grad(jax.checkpoint(loss()), range(5))
    assert ours(unsaved, *arrays).count("deform_conv2d") == 2


def test_precision_is_that_of_the_matrix_products_on_xla():
    arrays = SMALL.arrays("float32")
    for precision in ("default", "highest"):
        f = functools.partial(operator(implementation="xla"), precision=precision)
        text = jax.jit(f).lower(*arrays).as_text()
        assert ("precision = [HIGHEST, HIGHEST]" in text) == (precision == "highest")
    native = operator(implementation="native")
    assert (native(*arrays) == native(*arrays, precision="highest")).all()


def test_linearize_runs_the_tangent_kernel():
    arrays, dots = SMALL.arrays("float64"), SMALL.arrays("float64", seed=4)
    y, f_jvp = jax.linearize(operator(), *arrays)
    assert_close((y, f_jvp(*dots)), jax.jvp(operator(), arrays, dots))


BITS = """
import hashlib, sys
import jax
sys.path.insert(0, ".")
from tests.deform_conv2d.cases import CASES, WORKLOADS
from jax_dcn import deform_conv2d, reference

digest = hashlib.sha256()
for case in [*CASES, WORKLOADS[7]]:
    arrays = case.arrays("float32")
    f = lambda *a: deform_conv2d(*a, **case.options, implementation="native")

    @jax.jit
    def everything(arrays, dots):
        y, vjp = jax.vjp(f, *arrays)
        return y, jax.jvp(f, arrays, dots)[1], vjp(y)

    for leaf in jax.tree.leaves(everything(arrays, case.arrays("float32", seed=5))):
        digest.update(leaf.tobytes())
print(digest.hexdigest())
"""


def test_bits_depend_neither_on_the_run_nor_on_the_number_of_threads():
    def bits(threads: int) -> str:
        environment = os.environ | {"NPROC": str(threads)}  # the size of XLA's thread pool
        run = subprocess.run(
            [sys.executable, "-c", BITS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout

    assert bits(1) == bits(2) == bits(7)
