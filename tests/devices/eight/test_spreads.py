# SPDX-License-Identifier: MIT
"""Every operator on several devices: what they send each other, and how results are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.devices.collectives import collectives
from tests.devices.meshes import mesh, spec_of
from tests.laws.operator import Case, Operator, Spread
from tests.laws.table import every

KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def spreads(operator: Operator) -> tuple[Spread, ...]:
    return operator.spreads


def run(operator: Operator, case: Case, f, split: dict[str, P], kind: AxisType = AxisType.Auto):
    """The collectives of `f`, the shapes on each device of its arrays, and the splits of its results."""
    arrays, devices = case.arrays("float32"), mesh(kind, data=4, model=2)
    shardings = [NamedSharding(devices, split.get(name, P())) for name in operator.arguments]
    placed = list(map(jax.device_put, arrays, shardings))
    with jax.set_mesh(devices):
        program = jax.jit(f).lower(*placed).compile()
        results = jax.tree.leaves(program(*placed))
    for result, expected in zip(results, jax.tree.leaves(jax.jit(f)(*arrays)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    shapes = {
        name: sharding.shard_shape(array.shape)
        for name, sharding, array in zip(operator.arguments, shardings, arrays, strict=True)
    }
    return collectives(program), shapes, [spec_of(result) for result in results]


@KINDS
@every(spreads, "spread")
def test_nothing_is_sent_but_one_all_reduce_of_gradients(operator, spread, kind, implementation):
    f, cotangent = spread.case.function(implementation), spread.case.cotangent("float32")

    def value_and_gradients(*arrays):
        g = operator.of_differentiable(f, arrays)
        y, vjp = jax.vjp(g, *operator.differentiable(arrays))
        return y, vjp(cotangent)

    sent, shapes, splits = run(operator, spread.case, value_and_gradients, spread.split, kind)
    sums = [("all-reduce", tuple(shapes[name] for name in spread.summed))] if spread.summed else []
    assert [(c.kind, c.shapes) for c in sent] == sums
    names = operator.differentiable(operator.arguments)
    assert splits == [spread.result, *(spread.split.get(name, P()) for name in names)]


@every(spreads, "spread")
def test_tangents_split_as_the_operator_does(operator, spread):
    f = spread.case.function()
    tangent = lambda *arrays: jax.jvp(f, arrays, arrays)
    sent, _, splits = run(operator, spread.case, tangent, spread.split)
    assert sent == [] and splits == [spread.result] * 2


@every(lambda operator: operator.spreads[-1:], "spread")
def test_second_derivatives_are_those_of_one_device(operator, spread):
    f, cotangent = spread.case.function(), spread.case.cotangent("float32")

    def gradients_of_gradients(*arrays):
        g, values = operator.of_differentiable(f, arrays), operator.differentiable(arrays)
        indices = range(len(values))
        loss = lambda *values: (jnp.sin(g(*values)) * cotangent).sum()
        squares = lambda *values: sum((g * g).sum() for g in jax.grad(loss, indices)(*values))
        return jax.grad(squares, indices)(*values)

    run(operator, spread.case, gradients_of_gradients, spread.split, AxisType.Explicit)


@every(lambda operator: operator.whole.items(), "name, spec")
def test_axes_that_samples_cross_are_gathered(operator, name, spec):
    case = operator.spreads[0].case
    (gather,), _, _ = run(operator, case, case.function(), {name: spec})
    (shape,) = gather.shapes
    whole = dict(zip(operator.arguments, case.arrays("float32"), strict=True))[name].shape
    assert gather.kind == "all-gather" and shape == whole
