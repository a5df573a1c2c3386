# SPDX-License-Identifier: MIT
"""What users import is called by the name that they import it by, everywhere."""

import inspect
import pickle
import pydoc

import jax
import pytest

import jax_dcn
import jax_dcn.layers
import jax_dcn.linen
import jax_dcn.nnx
import jax_dcn.reference

MODULES = (jax_dcn, jax_dcn.layers, jax_dcn.linen, jax_dcn.nnx, jax_dcn.reference)
PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isfunction(value) or inspect.isclass(value)
}


def test_the_public_functions_and_classes_are_found():
    assert {"jax_dcn.deform_conv2d", "jax_dcn.nnx.DeformConv"} <= set(PUBLIC)
    assert "jax_dcn.reference.deform_roi_pool_backward" in PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_do_not_lead_into_the_source(name):
    value = PUBLIC[name]
    shown = f"{value.__module__}.{value.__qualname__}"
    if name.endswith("is_offset_branch"):  # exported thrice
        assert shown == "jax_dcn.layers.is_offset_branch"
    else:
        assert shown == name
    assert "jax_dcn._src" not in pydoc.render_doc(value)
    # The help() of Python 3.13 shows the module of each function that a class has as a member.
    members = vars(value).values() if inspect.isclass(value) else ()
    functions = [member for member in members if inspect.isfunction(member)]
    assert not [f for f in functions if f.__module__.startswith("jax_dcn._src")]
    assert "jax_dcn._src" not in repr(value)


@pytest.mark.parametrize("name", PUBLIC)
def test_functions_and_classes_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(PUBLIC[name])) is PUBLIC[name]


def test_layers_can_be_pickled():
    # Flax's default initialisers are local functions, which cannot be pickled.
    init = dict(kernel_init=jax.nn.initializers.ones, bias_init=jax.nn.initializers.zeros)
    layer = jax_dcn.linen.DeformConv(4, (3, 2), **init)
    assert pickle.loads(pickle.dumps(layer)) == layer
