# SPDX-License-Identifier: MIT
"""`to_flax` gives every variable a tensor in a certain order of axes, or refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_dcn import nnx as dcn_nnx
from jax_dcn.interop.torch_weights import convolution, to_flax, transposed_convolution
from tests.interop.test_interop_torch_names import rngs, tensors, zeros


class Upsampling(nnx.Module):
    def __init__(self, features, size, transpose_kernel=False):
        self.up = nnx.ConvTranspose(
            4, features, (size, size), (2, 2), transpose_kernel=transpose_kernel, rngs=rngs()
        )


@pytest.mark.parametrize("features", [4, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_a_state_does_not_fill_a_transposed_convolution_as_an_ordinary_one(features, size):
    weights = tensors({"up.weight": (4, features, size, size), "up.bias": (features,)})
    for like in (nnx.state(Upsampling(features, size)), nnx.split(Upsampling(features, size))[1]):
        with pytest.raises(ValueError, match=r"up\.weight: .*\n.*(NNX model itself|transposed)"):
            to_flax(weights, like, strict=False)


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("features", [4, 3])
def test_a_model_or_a_table_says_which_convolutions_are_transposed(features, transpose_kernel):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    theirs = torch.nn.ConvTranspose2d(4, features, (3, 2), stride=2)
    weights = {f"up.{name}": value for name, value in theirs.state_dict().items()}
    model = Upsampling(features, 2, transpose_kernel)
    model.up = nnx.ConvTranspose(
        4,
        features,
        (3, 2),
        (2, 2),
        padding="VALID",
        transpose_kernel=transpose_kernel,
        rngs=rngs(),
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    expected = theirs(torch.tensor(x)).detach().numpy().transpose(0, 2, 3, 1)
    function = convolution if transpose_kernel else transposed_convolution
    tables = {r"^up\.kernel$": function}
    for variables in (
        to_flax(weights, model),
        to_flax(weights, nnx.state(model), convert=tables),
    ):
        nnx.update(model, variables)
        y = model.up(jnp.asarray(x.transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


class Derived(nnx.ConvTranspose):
    pass


class Own(nnx.Module):
    """A module of the user, of which nobody knows how it uses its kernel."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.zeros((2, 2, 4, 4), jnp.float32))


def test_a_class_derived_from_a_transposed_convolution_is_one():
    weights = tensors({"up.weight": (4, 4, 3, 2)})
    options = dict(use_bias=False, rngs=rngs())
    model = nnx.Dict(up=Derived(4, 4, (3, 2), **options))
    found = to_flax(weights, model)["up"]["kernel"][...]
    np.testing.assert_array_equal(found, transposed_convolution(weights["up.weight"]))


def test_a_kernel_of_an_unknown_module_that_may_be_transposed_is_refused():
    weights = tensors({"own.weight": (4, 4, 2, 2)})
    with pytest.raises(ValueError, match=r"own\.weight: a convolution and a transposed"):
        to_flax(weights, nnx.Dict(own=Own()))
    found = to_flax(weights, nnx.Dict(own=Own()), convert={r"own\.kernel": convolution})
    np.testing.assert_array_equal(found["own"]["kernel"][...], convolution(weights["own.weight"]))


class Unusual(nnx.Module):
    def __init__(self):
        self.dense = nnx.LinearGeneral((2, 2), 2, axis=(-2, -1), use_bias=False, rngs=rngs())
        self.up = nnx.Conv(4, 4, (3, 3), input_dilation=2, use_bias=False, rngs=rngs())


def test_modules_without_a_counterpart_are_refused_by_name():
    weights = tensors({"dense.weight": (2, 2, 2), "up.weight": (4, 4, 3, 3)})
    with pytest.raises(ValueError) as error:
        to_flax(weights, Unusual())
    assert "dense.weight: PyTorch has no counterpart of LinearGeneral" in str(error.value)
    assert "up.weight: a Conv with input_dilation" in str(error.value)


def test_an_einsum_of_two_axes_is_refused():
    """Its equation, which the shape does not show, says which axis is the input's."""
    model = nnx.Dict(e=nnx.Einsum("...b,cb->...c", (4, 4), None, rngs=rngs()))
    weights = tensors({"e.weight": (4, 4)})
    with pytest.raises(ValueError, match=r"e\.weight: PyTorch has no counterpart of Einsum"):
        to_flax(weights, model)
    found = to_flax(weights, model, convert={"kernel": np.asarray})["e"]["kernel"][...]
    np.testing.assert_array_equal(found, weights["e.weight"])


@nnx.vmap
def stack_of_dense(key):
    return nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(key))


@nnx.vmap
def stack_of_convolutions(key):
    return nnx.Conv(3, 4, 3, use_bias=False, rngs=nnx.Rngs(key))


@nnx.vmap
def stack_of_deformable_layers(key):
    return dcn_nnx.DeformConv(3, 4, 1, use_bias=False, offset_branch=False, rngs=nnx.Rngs(key))


@pytest.mark.parametrize(
    "stack", [stack_of_dense, stack_of_convolutions, stack_of_deformable_layers]
)
def test_layers_in_a_stack_are_not_read_as_one_layer_of_more_axes(stack):
    model = stack(jax.random.split(jax.random.key(0), 5))
    shape = model.kernel.shape
    weights = tensors({"weight": (shape[-1], shape[-2], *shape[:-2])})
    with pytest.raises(ValueError, match=rf"uncertain:\n  weight: .* {len(shape)} axes .* stack"):
        to_flax(weights, model)


@pytest.mark.parametrize("kernel_size", [2, 3, (2, 4)])
def test_a_deformable_layer_without_a_branch_is_no_transposed_convolution(kernel_size):
    class Layer(dcn_nnx.DeformConv):
        pass

    options = dict(offset_branch=False, use_bias=False, rngs=rngs())
    for cls in (dcn_nnx.DeformConv, Layer):
        model = nnx.Dict(up=cls(4, 4, kernel_size, **options))
        weights = tensors({"up.weight": (4, 4, *model["up"].kernel.shape[:2])})
        found = to_flax(weights, model)["up"]["kernel"][...]
        np.testing.assert_array_equal(found, convolution(weights["up.weight"]))


def test_only_a_state_is_met_with_the_advice_to_give_the_model():
    weights, advice = tensors({"own.weight": (4, 4, 2, 2)}), "give the NNX model itself"
    for like, is_said in ((nnx.Dict(own=Own()), False), (nnx.state(nnx.Dict(own=Own())), True)):
        with pytest.raises(ValueError, match="Uncertain tensors: ") as error:
            to_flax(weights, like)
        assert (advice in str(error.value)) == is_said


@pytest.mark.parametrize("strict", [True, False])
def test_axes_that_the_shape_does_not_tell_apart_are_refused(strict):
    like = {"norm": {"scale": np.zeros((3, 5, 5))}, "table": np.zeros((4, 4))}
    weights = tensors({"norm.weight": (3, 5, 5), "table": (4, 4)})
    with pytest.raises(ValueError) as error:
        to_flax(weights, like, strict=strict)
    assert "2 uncertain:\n  norm.weight: axes of equal size" in str(error.value)
    assert "table: axes of equal size" in str(error.value) and "convert=" in str(error.value)
    found = to_flax(weights, like, convert={"^table$": np.asarray, r"norm\.scale": np.asarray})
    np.testing.assert_array_equal(found["table"], weights["table"])


def test_other_leaves_are_found_by_their_own_name():
    like = {
        "scales": {0: {"scale": np.zeros(())}},
        "pos_embed": np.zeros((1, 7, 5)),
        "embed": {"embedding": np.zeros((6, 6))},
    }
    weights = tensors({"scales.0.scale": (), "pos_embed": (1, 7, 5), "embed.weight": (6, 6)})
    found = to_flax(weights, like)
    assert found["scales"][0]["scale"] == weights["scales.0.scale"] != 0
    np.testing.assert_array_equal(found["pos_embed"], weights["pos_embed"])
    np.testing.assert_array_equal(found["embed"]["embedding"], weights["embed.weight"])
    with pytest.raises(ValueError, match="1 missing:\n  pos_embed"):
        to_flax({k: v for k, v in weights.items() if k != "pos_embed"}, like)


def test_tensors_of_integers_do_not_fill_parameters():
    with pytest.raises(ValueError, match=r"a.bias: expected floating point, got int8"):
        to_flax({"a.bias": np.ones(3, np.int8)}, zeros("a.bias"))


def test_convert_makes_floating_point_of_tensors_of_integers():
    weights, like = {"a.bias": np.array([1, -2, 3], np.int8)}, zeros("a.bias")
    found = to_flax(weights, like, convert={"bias": lambda tensor: 0.5 * tensor})
    np.testing.assert_array_equal(found["a"]["bias"], [0.5, -1, 1.5])
    with pytest.raises(ValueError, match=r"a.bias: expected floating point, got int8"):
        to_flax(weights, like, convert={"bias": np.asarray})
