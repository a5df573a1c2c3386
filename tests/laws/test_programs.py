# SPDX-License-Identifier: MIT
"""What JAX's programs hold: how many primitives of an operator, and no loops."""

import jax
import numpy as np
import pytest

from tests.laws.operator import Operator
from tests.laws.table import every, every_operator


def primitives(jaxpr) -> list[str]:
    """Names of all the primitives in a program, with those in inner programs."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
        names += (name for value in inner if hasattr(value, "eqns") for name in primitives(value))
    return names


def ours(operator: Operator, f, *arrays) -> list[str]:
    names = primitives(jax.make_jaxpr(f)(*arrays).jaxpr)
    return [name for name in names if name.startswith(operator.name) or name in ("while", "scan")]


def forward_and_backward(operator: Operator) -> list[str]:
    return [operator.name, f"{operator.name}_backward"]


def gradient(operator: Operator, loss=None, argnums=None):
    return jax.grad(loss or operator.loss(operator.small), argnums or operator.moving)


@every_operator
def test_gradient_is_one_forward_and_one_fused_backward(operator):
    arrays, f = operator.small.arrays("float64"), gradient(operator)
    assert ours(operator, f, *arrays) == forward_and_backward(operator)
    assert ours(operator, jax.jit(f), *arrays) == forward_and_backward(operator)


def some_of_the_arguments(operator: Operator):
    some = [(i,) for i in operator.moving]
    return [(wrt,) for wrt in (*some, operator.moving[1:], operator.moving)]


@every(some_of_the_arguments, "argnums")
def test_only_the_gradients_asked_for_are_computed(operator, argnums):
    f = gradient(operator, argnums=argnums)
    program = jax.make_jaxpr(f)(*operator.small.arrays("float64"))
    (backward,) = (e for e in program.eqns if e.primitive.name == f"{operator.name}_backward")
    assert backward.params["wrt"] == tuple(operator.arguments[i] for i in argnums)
    assert len(backward.outvars) == len(argnums)


@every_operator
def test_vmap_makes_no_loop(operator):
    arrays = [np.stack([a, a, a]) for a in operator.small.arrays("float64")]
    assert ours(operator, jax.vmap(operator.small.function()), *arrays) == [operator.name]
    assert ours(operator, jax.vmap(gradient(operator)), *arrays) == forward_and_backward(operator)


COPIES, MEBIBYTE = 64, 2**20


def mapped_over_one_image(operator: Operator, kind: str):
    """A program that reads one image in all elements of the mapped axis, and its arrays."""
    case = operator.shared
    f, index = case.function("native"), operator.arguments.index(operator.displaced)
    arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in case.arrays("float32")]
    y = jax.ShapeDtypeStruct(case.cotangent("float32").shape, np.float32)

    def call(changing, *arrays):
        if kind == "values":
            return f(*arrays[:index], changing, *arrays[index + 1 :])
        return jax.vjp(lambda x: f(x, *arrays[1:]), arrays[0])[1](changing)

    changing = {"values": arrays[index], "cotangents": y}[kind]
    stacked = jax.ShapeDtypeStruct((COPIES, *changing.shape), changing.dtype)
    return jax.vmap(call, (0, *(None for _ in arrays))), [stacked, *arrays]


@pytest.mark.parametrize("kind", ["values", "cotangents"])
@every_operator
def test_vmap_does_not_copy_an_image_that_is_not_mapped(operator, kind):
    f, arrays = mapped_over_one_image(operator, kind)
    memory = jax.jit(f).lower(*arrays).compile().memory_analysis()
    assert memory.argument_size_in_bytes > 8 * MEBIBYTE
    assert memory.temp_size_in_bytes <= 16 * MEBIBYTE


@every_operator
def test_checkpoint_policy_can_name_the_output(operator):
    arrays, loss = operator.small.arrays("float64"), operator.loss(operator.small)
    policy = jax.checkpoint_policies.save_only_these_names(operator.name)
    saved = gradient(operator, jax.checkpoint(loss, policy=policy))
    assert ours(operator, saved, *arrays).count(operator.name) == 1
    unsaved = gradient(operator, jax.checkpoint(loss))
    assert ours(operator, unsaved, *arrays).count(operator.name) == 2
