# SPDX-License-Identifier: MIT
"""`deform_conv2d` where shardings are in the types: meshes with explicit axes, and `shard_map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.operator import chunks, folding, libraries
from tests.deform_conv2d.cases import ARGUMENTS, Case
from tests.deform_conv2d.row import FEATURES, IMAGES, SPREAD
from tests.devices.collectives import collectives
from tests.devices.meshes import mesh, operator, spec_of

CHANNELS = dict(x=P(None, None, None, "model"), kernel=P(None, None, "model"))
EXPLICIT = mesh(AxisType.Explicit, data=4, model=2)


def place(case: Case, **specs: P) -> list[jax.Array]:
    return [
        jax.device_put(array, NamedSharding(EXPLICIT, specs.get(name, P())))
        for name, array in zip(ARGUMENTS, case.arrays(), strict=True)
    ]


def stacked(copies: int) -> list[np.ndarray]:
    """Images several times over, with one kernel and bias."""
    x, kernel, offset, mask, bias = SPREAD.arrays()
    x, offset, mask = (np.stack([array] * copies) for array in (x, offset, mask))
    return [x, kernel, offset, mask, bias]


def loss(*arrays, implementation=None):
    y = operator(SPREAD, implementation)(*arrays)
    return (y * y).sum()


@pytest.mark.parametrize(
    ("specs", "result", "forward", "backward"),
    [
        (IMAGES, P("data"), [], ["all-reduce"]),
        (FEATURES, P(None, None, None, "model"), [], ["all-reduce"]),
        (IMAGES | FEATURES, P("data", None, None, "model"), [], ["all-reduce"] * 2),
        (CHANNELS, P(), ["all-reduce"], ["all-reduce"] * 2),
        (
            dict(x=P(None, None, None, "model")) | FEATURES,
            P(None, None, None, "model"),
            ["all-gather"],
            ["all-gather", "all-reduce"],
        ),
        (dict(x=P(None, "model")), P(), ["all-gather"], ["all-gather"]),
    ],
    ids=["batch", "features", "both", "channels", "conflict", "rows"],
)
def test_explicit_shardings_follow_from_those_of_the_operands(specs, result, forward, backward):
    expected = operator(SPREAD)(*SPREAD.arrays())
    grads = jax.grad(loss, range(5))(*SPREAD.arrays())
    with jax.set_mesh(EXPLICIT):
        placed = place(SPREAD, **specs)
        program = jax.jit(operator(SPREAD)).lower(*placed).compile()
        y = jax.jit(operator(SPREAD))(*placed)
        gradient = jax.jit(jax.grad(loss, range(5)))
        sent = collectives(gradient.lower(*placed).compile())
        found = gradient(*placed)
    assert spec_of(y) == result
    assert [c.kind for c in collectives(program)] == forward
    # The sum of the loss is one more, of a single number.
    assert sorted(c.kind for c in sent if max(map(len, c.shapes))) == backward
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for name, a, b in zip(ARGUMENTS, found, grads, strict=True):
        assert spec_of(a) == specs.get(name, P())
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_shard_map_sums_the_gradients_of_what_is_not_split(implementation):
    arrays = [jnp.asarray(a) for a in SPREAD.arrays()]
    specs = tuple(IMAGES.get(name, P()) for name in ARGUMENTS)

    def local_gradients(*arrays):
        total = lambda *a: jax.lax.psum(loss(*a, implementation=implementation), "data")
        return jax.grad(total, range(5))(*arrays)

    automatic = mesh(data=4, model=2)
    split = jax.jit(jax.shard_map(local_gradients, mesh=automatic, in_specs=specs, out_specs=specs))
    (sums,) = collectives(split.lower(*arrays).compile())
    assert sums.kind == "all-reduce" and set(sums.shapes) == {(3, 2, 8, 12), (12,)}
    for a, b in zip(split(*arrays), jax.grad(loss, range(5))(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_gradients_in_chunks_on_cuda_vary_as_the_arrays_do(monkeypatch):
    monkeypatch.setenv(cost.VARIABLE, "columns")
    monkeypatch.setenv(chunks.VARIABLE, "1")
    # Lowering needs no kernels.
    monkeypatch.setattr(libraries, "why_not", lambda *_, **__: None)
    specs = tuple(IMAGES.get(name, P()) for name in ARGUMENTS)
    gradients = jax.grad(loss, range(5))
    split = jax.shard_map(gradients, mesh=mesh(data=4), in_specs=specs, out_specs=specs)
    traced = jax.jit(split).trace(*SPREAD.arrays())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "columns_backward" in text and "stablehlo.while" in text


def test_axes_that_shard_map_leaves_to_jit_are_right():
    f = jax.shard_map(
        operator(SPREAD),
        mesh=mesh(data=4, model=2),
        in_specs=tuple(IMAGES.get(name, P()) for name in ARGUMENTS),
        out_specs=P("data"),
        axis_names={"data"},
    )
    expected = operator(SPREAD)(*SPREAD.arrays())
    np.testing.assert_allclose(jax.jit(f)(*SPREAD.arrays()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10),
    reason="JAX 0.8.1 cannot compile every shard_map inside another one",
)
@pytest.mark.parametrize("specs", [{}, FEATURES, CHANNELS], ids=["whole", "features", "channels"])
def test_explicit_axes_that_shard_map_leaves_are_right(specs, implementation):
    compute = operator(SPREAD, implementation)
    gradients = jax.grad(lambda *a: loss(*a, implementation=implementation), (0, 1))
    arrays = SPREAD.arrays()
    images, split = P("data"), [IMAGES.get(name, P()) for name in ARGUMENTS]
    own = P("data", *specs.get("x", P())[1:])
    with jax.set_mesh(EXPLICIT):
        placed = place(SPREAD, **({name: images for name in IMAGES} | specs | dict(x=own)))
        for f, result in ((compute, images), (gradients, (images, P()))):
            local = jax.shard_map(f, in_specs=tuple(split), out_specs=result, axis_names={"data"})
            found, expected = jax.jit(local)(*placed), f(*map(jnp.asarray, arrays))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P(None, "data"), P("data"), P("data", "model")])
def test_vmap_keeps_the_sharding(spec, kind):
    arrays = stacked(4)
    devices = mesh(kind, data=4, model=2)
    specs = [spec if name in IMAGES else P() for name in ARGUMENTS]
    placed = [
        jax.device_put(a, NamedSharding(devices, s)) for a, s in zip(arrays, specs, strict=True)
    ]
    mapped = jax.vmap(operator(SPREAD), (0, None, 0, 0, None))
    with jax.set_mesh(devices):
        program = jax.jit(mapped).lower(*placed).compile()
        y = jax.jit(mapped)(*placed)
    assert collectives(program) == [] and y.sharding.is_equivalent_to(placed[0].sharding, y.ndim)


STACKED_KERNELS = [
    P("model"),
    P(None, None, None, None, "data"),
    P("model", None, None, None, "data"),
    P(None, None, None, "model"),
]


@pytest.mark.parametrize("spec", STACKED_KERNELS, ids=str)
@pytest.mark.parametrize("axis", [None, 0], ids=["shared", "mapped"])
def test_vmap_of_kernels_is_that_of_one_device(axis, spec):
    x, kernel, offset, _, _ = SPREAD.arrays()
    arrays = (x if axis is None else np.stack([x, -x]), np.stack([kernel, 2 * kernel]), offset)
    specs = P() if axis is None else P(spec[0]), spec, P()
    mapped = jax.vmap(lambda *arrays: operator(SPREAD)(*arrays), (axis, 0, None))
    expected = mapped(*arrays)
    with jax.set_mesh(EXPLICIT):
        placed = [
            jax.device_put(array, NamedSharding(EXPLICIT, s))
            for array, s in zip(arrays, specs, strict=True)
        ]
        y = jax.jit(mapped)(*placed)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", [0, 2**23], ids=["looped", "batched"])
def test_vmap_along_an_explicit_axis_needs_no_mesh_around_the_call(copies, monkeypatch):
    monkeypatch.setattr(folding, "_COPY_BYTES", copies)
    x, kernel, offset, _, _ = SPREAD.arrays()
    offsets = np.stack([offset] * 4)
    placed = jax.device_put(offsets, NamedSharding(EXPLICIT, P("data")))
    mapped = jax.vmap(lambda offset: operator(SPREAD)(x, kernel, offset))
    np.testing.assert_allclose(jax.jit(mapped)(placed), mapped(offsets), rtol=1e-4, atol=1e-4)


def batches(kind: AxisType) -> list[jax.Array]:
    """Three batches, one after the other, the images of each spread over four devices."""
    specs = [P(None, "data") if name in IMAGES else P() for name in ARGUMENTS]
    return [
        jax.device_put(array, NamedSharding(mesh(kind, data=4), spec))
        for array, spec in zip(stacked(3), specs, strict=True)
    ]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_gradients_of_checkpointed_scans_keep_the_sharding(kind):
    placed = batches(kind)

    def total(x, kernel, offset, mask, bias):
        step = jax.checkpoint(lambda images: loss(images[0], kernel, *images[1:], bias))
        return jax.lax.scan(lambda sum, i: (sum + step(i), None), 0.0, (x, offset, mask))[0]

    with jax.set_mesh(mesh(kind, data=4)):
        gradient = jax.jit(jax.grad(total, (0, 1)))
        (sums,) = collectives(gradient.lower(*placed).compile())
        grad_x, grad_kernel = gradient(*placed)
    assert sums.kind == "all-reduce" and sums.shapes == (SPREAD.arrays()[1].shape,)
    assert grad_x.sharding.is_equivalent_to(placed[0].sharding, grad_x.ndim)
    expected = jax.grad(loss, 1)(*SPREAD.arrays())
    np.testing.assert_allclose(grad_kernel, 3 * expected, rtol=1e-3, atol=1e-3)


def accumulated(x, kernel, offset, mask, bias):
    """The gradients of kernel and bias, added up batch by batch."""

    def add(sums, batch):
        grads = jax.grad(loss, (1, 4))(batch[0], kernel, *batch[1:], bias)
        return jax.tree.map(jnp.add, sums, grads), None

    zeros = jax.tree.map(jnp.zeros_like, (kernel, bias))
    return jax.lax.scan(add, zeros, (x, offset, mask))[0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_accumulated_gradients_are_one_all_reduce_a_batch(kind):
    placed = batches(kind)
    with jax.set_mesh(mesh(kind, data=4)):
        program = jax.jit(accumulated).lower(*placed).compile()
        result = jax.jit(accumulated)(*placed)
    (sums,) = collectives(program)
    assert sums.kind == "all-reduce" and sums.shapes == ((3, 2, 8, 12), (12,))
    for a, b in zip(result, jax.grad(loss, (1, 4))(*SPREAD.arrays()), strict=True):
        np.testing.assert_allclose(a, 3 * b, rtol=1e-3, atol=1e-3)


def test_shard_map_sums_accumulated_gradients_once():
    placed = batches(AxisType.Auto)

    def own(array):
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(array, "data", to="varying")
        return jax.lax.pvary(array, "data")  # Before JAX 0.9.

    def local(x, kernel, offset, mask, bias):
        return jax.lax.psum(accumulated(x, own(kernel), offset, mask, own(bias)), "data")

    specs = tuple(array.sharding.spec for array in placed)
    once = jax.jit(jax.shard_map(local, mesh=mesh(data=4), in_specs=specs, out_specs=P()))
    program = once.lower(*placed).compile()
    (sums,) = collectives(program)
    assert sums.shapes == ((3, 2, 8, 12), (12,))
    assert "all-reduce" in program.as_text().split("\nENTRY ")[1]  # And not in the loop.
    for a, b in zip(once(*placed), accumulated(*stacked(3)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
