# SPDX-License-Identifier: MIT
"""`is_offset_branch` marks the parameters that train slower, and never marks none of them."""

import functools

import jax.numpy as jnp
import optax
import pytest

from jax_dcn.nnx import is_offset_branch

ONE = jnp.ones(2)


@pytest.mark.parametrize("name", ["offset_conv", "conv_offset", "conv_offset_mask"])
def test_branches_of_the_published_names_are_found(name):
    tree = {"net": {"kernel": ONE, name: {0: {"kernel": ONE}}}}
    assert is_offset_branch(tree) == {"net": {"kernel": False, name: {0: {"kernel": True}}}}
    assert is_offset_branch({f"net.{name}.kernel": ONE, "x": ONE}) == {
        f"net.{name}.kernel": True,
        "x": False,
    }


@pytest.mark.parametrize("names", ["shift", ["shift"], ("shift", "conv")])
def test_names_can_be_given(names):
    tree = {"conv": {"shift": ONE, "kernel": ONE}, "offset_conv": ONE}
    found = is_offset_branch(tree, names=names)
    assert found["conv"] == {"shift": True, "kernel": "conv" in names}
    assert not found["offset_conv"]


def test_a_tree_without_branches_is_refused_with_the_names_it_has():
    tree = {"conv": {"my_offset": ONE, "kernel": ONE}}
    message = r"'offset_conv' or .*names=.*\['conv', 'kernel', 'my_offset'\]"
    with pytest.raises(ValueError, match=message):
        is_offset_branch(tree)
    with pytest.raises(ValueError, match=message):
        optax.masked(optax.scale(0.1), is_offset_branch).init(tree)
    with pytest.raises(ValueError, match="in a module named 'shift'"):
        is_offset_branch(tree, names=["my_offset", "shift"])
    mask = functools.partial(is_offset_branch, names=["my_offset"])
    updates, _ = optax.masked(optax.scale(0.1), mask).update(
        tree, optax.masked(optax.scale(0.1), mask).init(tree)
    )
    assert (
        updates["conv"]["kernel"].sum() == 2
        and abs(updates["conv"]["my_offset"].sum() - 0.2) < 1e-6
    )


@pytest.mark.parametrize("names", [[], [3]])
def test_names_are_names(names):
    with pytest.raises(ValueError, match="names must be "):
        is_offset_branch({"offset_conv": ONE}, names=names)


def test_an_empty_tree_stays_empty():
    assert is_offset_branch({"frozen": {}}) == {"frozen": {}}
