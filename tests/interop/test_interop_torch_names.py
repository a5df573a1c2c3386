# SPDX-License-Identifier: MIT
"""`to_flax` gives every variable the tensor of its own name, in a certain order of axes, or refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from jax_dcn import nnx as dcn_nnx
from jax_dcn.interop.torch_weights import (
    convolution,
    to_flax,
    to_flax_and_report,
    transposed_convolution,
)

LINEAR = {"weight": (2, 3), "bias": (2,)}


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor of every name, no two with a value in common."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def zeros(*names: str, shape: tuple[int, ...] = (3,)) -> dict:
    """A tree of zeros with a leaf at every dotted name."""
    tree: dict = {}
    for name in names:
        *modules, leaf = name.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = np.zeros(shape, np.float32)
    return tree


def at(tree, name: str):
    for key in name.split("."):
        tree = tree[key]
    return tree


def rngs() -> nnx.Rngs:
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


# ------------------------------------------------------------------------------------ exact names


@pytest.mark.parametrize("name", ["conv_l2_1", "proj_1", "ida_0", "backward_1", "a_1_2"])
@pytest.mark.parametrize("parent", ["", "net.", "blocks_0."])
def test_a_name_that_ends_in_a_number_is_found(name, parent):
    weights = tensors({f"{parent}{name}.bias": (3,)})
    found = to_flax(weights, zeros(f"{parent}{name}.bias"))
    np.testing.assert_array_equal(
        at(found, f"{parent}{name}.bias"), weights[f"{parent}{name}.bias"]
    )


@pytest.mark.parametrize("torch_name", ["layers.0.1", "layers_0.1"])
def test_items_of_linen_lists_are_found(torch_name):
    weights = tensors({f"{torch_name}.bias": (3,)})
    found = to_flax(weights, {"params": zeros("layers_0_1.bias")})
    np.testing.assert_array_equal(
        found["params"]["layers_0_1"]["bias"], weights[f"{torch_name}.bias"]
    )


@pytest.mark.parametrize("strict", [True, False])
def test_a_name_and_an_item_of_a_list_never_cross(strict):
    both = tensors({"conv.1.bias": (3,), "conv_1.bias": (3,)})
    found = to_flax(both, zeros("conv.1.bias", "conv_1.bias"), strict=strict)
    for name, value in both.items():
        np.testing.assert_array_equal(at(found, name), value)


@pytest.mark.parametrize("there", ["conv.1", "conv_1"])
def test_neither_takes_the_tensor_of_the_other_where_one_is_missing(there):
    like = zeros("conv.1.bias", "conv_1.bias")
    absent = {"conv.1": "conv_1", "conv_1": "conv.1"}[there]
    weights = tensors({f"{there}.bias": (3,)})
    found, report = to_flax_and_report(weights, like, strict=False)
    np.testing.assert_array_equal(at(found, f"{there}.bias"), weights[f"{there}.bias"])
    assert not at(found, f"{absent}.bias").any() and report.missing_keys == [f"{absent}.bias"]


def test_no_leaf_of_another_module_stands_in_for_a_missing_one():
    weights = tensors({"conv_1.weight": (3, 2, 1, 1), "conv.1.bias": (3,)})
    like = {"conv_1": {"kernel": np.zeros((1, 1, 2, 3)), "bias": np.zeros(3)}}
    found, report = to_flax_and_report(weights, like, strict=False)
    assert found["conv_1"]["kernel"].all() and not found["conv_1"]["bias"].any()
    assert report == (["conv_1.weight"], ["conv_1.bias"], ["conv.1.bias"])


def test_no_leaf_of_another_branch_stands_in_for_a_missing_one():
    branch = {"kernel": np.zeros((1, 1, 2, 27)), "bias": np.zeros(27)}
    like = {"block": {"conv1": {"kernel": np.zeros((1, 1, 2, 3)), "offset_conv": branch}}}
    shapes = {
        "block.conv1.weight": (3, 2, 1, 1),
        "block.conv1.conv_offset.weight": (27, 2, 1, 1),
        "block.conv_offset_mask.bias": (27,),
    }
    _, report = to_flax_and_report(tensors(shapes), like, strict=False)
    assert report.missing_keys == ["block.conv1.offset_conv.bias"]
    assert report.unexpected_keys == ["block.conv_offset_mask.bias"]


@pytest.mark.parametrize("prefix", ["layer4.2.conv2.", "layer4.2.conv2"])
@pytest.mark.parametrize(
    "branch", ["layer4.2.conv2_offset", "layer4.2.conv2.conv_offset", "layer4.2.conv_offset_mask"]
)
def test_one_layer_is_loaded_by_its_prefix_in_every_dialect(branch, prefix):
    layer = dcn_nnx.DeformConv(2, 3, 1, use_bias=False, rngs=rngs())
    shapes = {"layer4.2.conv2.weight": (3, 2, 1, 1), "layer4.2.conv1.weight": (2, 2, 1, 1)}
    weights = tensors(shapes | {f"{branch}.weight": (3, 2, 1, 1), f"{branch}.bias": (3,)})
    found, report = to_flax_and_report(weights, layer, prefix=prefix)
    assert len(report.loaded_keys) == 3 and not report.missing_keys
    kernel = found["offset_conv"]["kernel"][...]
    np.testing.assert_array_equal(kernel, convolution(weights[f"{branch}.weight"]))


def test_a_tensor_that_two_variables_ask_for_is_refused():
    branch = {"kernel": np.zeros((1, 1, 2, 27)), "bias": np.zeros(27)}
    layer = {"kernel": np.zeros((1, 1, 2, 3)), "offset_conv": branch}
    weights = tensors(
        {
            "block.conv1.weight": (3, 2, 1, 1),
            "block.conv2.weight": (3, 2, 1, 1),
            "block.conv_offset_mask.weight": (27, 2, 1, 1),
            "block.conv_offset_mask.bias": (27,),
        }
    )
    with pytest.raises(ValueError, match=r"block.conv_offset_mask.weight: both .*conv1.*conv2"):
        to_flax(weights, {"block": {"conv1": layer, "conv2": layer}}, strict=False)


# ------------------------------------------------------------------------------------- sequences


class LinenSequence(nn.Module):
    def setup(self):
        inner = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
        self.net = nn.Sequential([nn.Dense(5), inner])

    def __call__(self, x):
        return self.net(x)


def test_items_of_a_sequential_are_numbered_as_in_torch():
    """`torch.nn.Sequential` numbers its items; both Flaxes keep the items in `layers`."""
    sizes = {"net.0": (5, 3), "net.1.0": (4, 5), "net.1.2": (2, 4)}
    shapes = {f"{name}.weight": size for name, size in sizes.items()}
    weights = tensors(shapes | {f"{name}.bias": size[:1] for name, size in sizes.items()})
    x = np.ones((1, 3), np.float32)
    inner = nnx.Sequential(nnx.Linear(5, 4, rngs=rngs()), nnx.relu, nnx.Linear(4, 2, rngs=rngs()))
    model = nnx.Dict(net=nnx.Sequential(nnx.Linear(3, 5, rngs=rngs()), inner))
    nnx.update(model, to_flax(weights, model))
    expected = x
    for name in sizes:
        expected = expected @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        expected = np.maximum(expected, 0) if name == "net.1.0" else expected
    np.testing.assert_allclose(model["net"](x), expected, atol=1e-6)
    twin = LinenSequence()
    variables = to_flax(weights, jax.eval_shape(twin.init, jax.random.key(0), x))
    np.testing.assert_allclose(twin.apply(variables, x), expected, atol=1e-6)


@pytest.mark.parametrize("exact", ["net.layers.0", "net.layers_0"])
def test_an_exact_name_wins_over_the_number_of_a_sequential(exact):
    like = zeros(f"{exact}.bias", "net.0.bias")
    weights = tensors({f"{exact}.bias": (3,), "net.0.bias": (3,)})
    found = to_flax(weights, like)
    np.testing.assert_array_equal(at(found, f"{exact}.bias"), weights[f"{exact}.bias"])
    np.testing.assert_array_equal(at(found, "net.0.bias"), weights["net.0.bias"])
    alone = {"net.0.bias": weights["net.0.bias"]}  # whose own module takes it
    _, report = to_flax_and_report(alone, like, strict=False)
    assert report.missing_keys == [f"{exact}.bias"] and report.loaded_keys == ["net.0.bias"]


# ----------------------------------------------------------------------------------- certain axes


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


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("leave", ["fc", ["fc"], "head.fc"])
def test_modules_to_leave_are_named_alone_or_in_a_list(leave):
    like = zeros("head.fc.bias", "head.f.bias", "c.bias")
    weights = tensors({"head.fc.bias": (9,), "head.f.bias": (3,), "c.bias": (3,)})
    found = to_flax(weights, like, leave=leave)
    assert not found["head"]["fc"]["bias"].any()
    assert found["head"]["f"]["bias"].all() and found["c"]["bias"].all()
    with pytest.raises(ValueError, match="leave names 'fcc', which is no module"):
        to_flax(weights, like, leave=["fc", "fcc"])


def test_a_branch_to_leave_is_ignored_in_every_dialect():
    layer = nnx.state(dcn_nnx.DeformConv(2, 3, 1, modulated=False, use_bias=False, rngs=rngs()))
    weights = tensors({"weight": (3, 2, 1, 1), "conv_offset.weight": (2, 2, 1, 1)})
    found = to_flax(weights, layer, leave="offset_conv")
    assert not found["offset_conv"]["kernel"][...].any()


def sequence() -> nnx.Dict:
    linear = lambda: nnx.Linear(3, 2, rngs=rngs())
    return nnx.Dict(net=nnx.Sequential(linear(), nnx.relu, linear()), fc=linear())


@pytest.mark.parametrize("leave", ["net.2", "net.layers.2", "module.net.2"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_module_is_left_by_its_name_in_either_network(leave, is_there):
    names = ["module.net.0", "module.net.2", "module.fc"][:: 1 if is_there else 2]
    shapes = {f"{name}.{leaf}": shape for name in names for leaf, shape in LINEAR.items()}
    model = sequence()
    found, report = to_flax_and_report(tensors(shapes), model, prefix="module.", leave=leave)
    kept = found["net"]["layers"][2]["kernel"][...]
    np.testing.assert_array_equal(kept, model["net"].layers[2].kernel[...])
    assert len(report.loaded_keys) == 4 and not report.unexpected_keys


def test_a_linen_item_is_left_by_its_name_in_torch():
    weights = tensors({"layer4.0.bias": (3,), "layer4.1.bias": (3,)})
    found = to_flax(weights, zeros("layer4_0.bias", "layer4_1.bias"), leave="layer4.1")
    assert found["layer4_0"]["bias"].all() and not found["layer4_1"]["bias"].any()


def test_a_name_with_the_prefix_leaves_the_one_module_of_this_name():
    weights = tensors({"module.fc.bias": (3,), "module.aux.fc.bias": (3,)})
    like = zeros("fc.bias", "aux.fc.bias")
    found = to_flax(weights, like, prefix="module.", leave="module.fc")
    assert found["aux"]["fc"]["bias"].all() and not found["fc"]["bias"].any()


def test_a_missing_module_is_not_left_by_the_name_of_another():
    like = zeros("conv.bias", "conv_1.bias", "fc.bias")  # `conv_1` may be `conv.1` in PyTorch.
    _, report = to_flax_and_report(tensors({"fc.bias": (3,)}), like, leave="conv", strict=False)
    assert report.missing_keys == ["conv_1.bias"]


@pytest.mark.parametrize("leave", ["module", "head.a", "b"])
def test_a_name_that_leaves_nothing_is_refused(leave):
    weights = tensors({"module.a.bias": (3,), "head.a.bias": (3,)})
    with pytest.raises(ValueError, match=f"leave names '{leave}', which is no module"):
        to_flax(weights, zeros("a.bias"), prefix="module.", leave=leave)


@pytest.mark.parametrize("branch", ["conv_offset_mask", "conv_offset"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_branch_is_left_by_its_name_in_the_file(branch, is_there):
    layer = nnx.state(dcn_nnx.DeformConv(2, 3, 1, use_bias=False, rngs=rngs()))
    shapes = {f"{branch}.weight": (3, 2, 1, 1), f"{branch}.bias": (3,)} if is_there else {}
    found = to_flax(tensors({"weight": (3, 2, 1, 1)} | shapes), layer, leave=branch)
    assert not found["offset_conv"]["kernel"][...].any()


@pytest.mark.parametrize(
    "rename",
    [{r"^net\.": "", r"stage(\d)": r"layer\1"}, lambda name: name[4:].replace("stage", "layer")],
    ids=["table", "function"],
)
def test_names_are_renamed_by_a_table_or_a_function(rename):
    weights = tensors({"net.stage1.bias": (3,), "net.stage2.bias": (3,)})
    found = to_flax(weights, zeros("layer1.bias", "layer2.bias"), rename=rename)
    for index in (1, 2):
        np.testing.assert_array_equal(
            found[f"layer{index}"]["bias"], weights[f"net.stage{index}.bias"]
        )


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({r"\d": ""}, "rename gives several parameters the name 'a.bias'"),
        (lambda name: None, "rename must return a name, got None for 'a1.bias'"),
    ],
)
def test_names_that_are_lost_by_renaming_are_refused(rename, message):
    with pytest.raises(ValueError, match=message):
        to_flax(tensors({"a1.bias": (3,), "a2.bias": (3,)}), zeros("a.bias"), rename=rename)


def test_conversions_are_of_variables_that_exist_and_give_their_shape():
    weights = tensors({"a.bias": (3,)})
    with pytest.raises(ValueError, match="convert has the pattern 'b', which matches none"):
        to_flax(weights, zeros("a.xias"), convert={"b": np.asarray})
    with pytest.raises(ValueError, match=r"a.bias: expected \(3,\), got \(2,\)"):
        to_flax(weights, zeros("a.bias"), convert={"bias": lambda a: a[:2]})


# ----------------------------------------------------------------------------- reports and advice


def test_the_report_lists_what_became_of_every_parameter():
    weights = tensors({"a.bias": (3,), "b.bias": (3,), "x.y": (2,)})
    weights["bn.num_batches_tracked"] = np.array(7)
    _, report = to_flax_and_report(weights, zeros("a.bias", "c.bias", "d.0.bias"), strict=False)
    assert report.loaded_keys == ["a.bias"]
    assert report.missing_keys == ["c.bias", "d.0.bias"]
    assert report.unexpected_keys == ["b.bias", "x.y"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prefix", ["", "backbone.", "modul"])
def test_a_wrong_prefix_is_said_with_the_right_one(strict, prefix):
    weights = tensors({"module.backbone.a.bias": (3,), "module.head.a.x": (3,)})
    with pytest.raises(ValueError, match=r"names begin with `module\.backbone\.`"):
        to_flax(weights, zeros("a.bias", "b.bias"), strict=strict, prefix=prefix)


def test_a_prefix_that_finds_less_is_not_advised():
    own = {"norm.weight": (3,), "fc.weight": (2, 3), "fc.bias": (2,)}
    weights = tensors(own | {"aux.norm.weight": (3,), "aux.norm.bias": (3,)})
    linear = nnx.Linear(3, 2, rngs=rngs())
    model = nnx.Dict(norm=nnx.LayerNorm(3, rngs=rngs()), fc=linear)
    with pytest.raises(ValueError, match=r"1 missing:\n  norm\.bias") as error:
        to_flax(weights, model)
    assert "prefix" not in str(error.value)


def test_names_of_compiled_modules_are_met_with_the_remedy():
    weights = tensors({"backbone._orig_mod.c.bias": (3,), "fc.bias": (3,)})
    like = zeros("backbone.c.bias", "fc.bias")
    with pytest.raises(ValueError, match="compiled modules do") as error:
        to_flax(weights, like)
    rename = str(error.value).partition("rename=")[2].removesuffix(".")
    assert to_flax(weights, like, rename=eval(rename))["backbone"]["c"]["bias"].all()


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_network_are_refused(strict):
    with pytest.raises(ValueError, match=r"1 missing:\n  a.bias\n1 unexpected:\n  other"):
        to_flax(tensors({"other": (3,)}), zeros("a.bias"), strict=strict)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_of_the_other_version_are_said_to_be(modulated, groups):
    layer = dcn_nnx.DeformConv(4, 5, 3, modulated=modulated, offset_groups=groups, rngs=rngs())
    count = groups * (18 if modulated else 27)
    weights = tensors(
        {
            "weight": (5, 4, 3, 3),
            "bias": (5,),
            "conv_offset.weight": (count, 4, 3, 3),
            "conv_offset.bias": (count,),
        }
    )
    version = 1 if modulated else 2
    with pytest.raises(ValueError, match=f"version {version} weights: `modulated={not modulated}`"):
        to_flax(weights, nnx.state(layer))


def test_another_number_of_offset_groups_is_said():
    layer = dcn_nnx.DeformConv(4, 5, 3, offset_groups=2, use_bias=False, rngs=rngs())
    shapes = {"weight": (5, 4, 3, 3), "conv_offset.weight": (27, 4, 3, 3)}
    weights = tensors(shapes | {"conv_offset.bias": (27,)})
    with pytest.raises(ValueError, match="27 channels for 54: is offset_groups the published"):
        to_flax(weights, layer)


def test_a_branch_of_another_name_is_pointed_out():
    layer = dcn_nnx.DeformConv(4, 5, 3, modulated=False, use_bias=False, rngs=rngs())
    shapes = {"dcn.weight": (5, 4, 3, 3), "shift.weight": (18, 4, 3, 3), "shift.bias": (18,)}
    weights, model = tensors(shapes), nnx.Dict(dcn=layer)
    with pytest.raises(ValueError, match=r"shift\.weight has the shape of an offset") as error:
        to_flax(weights, model)
    rename = str(error.value).partition("rename=")[2].removesuffix(".")
    assert rename == r'{r"^shift\.": "dcn.offset_conv."}'
    found = to_flax(weights, model, rename={r"^shift\.": "dcn.offset_conv."})
    bias = found["dcn"]["offset_conv"]["bias"][...]
    np.testing.assert_array_equal(bias, weights["shift.bias"])


# ------------------------------------------------------- options that shapes and names do not show


SEPARATE = {
    "weight": (5, 4, 3, 3),
    "offset_conv.weight": (18, 4, 3, 3),
    "offset_conv.bias": (18,),
    "modulator_conv.weight": (9, 4, 3, 3),
    "modulator_conv.bias": (9,),
}
POINTS = {
    "sampling_offsets.weight": (16, 4),
    "sampling_offsets.bias": (16,),
    "attention_weights.weight": (8, 4),
    "attention_weights.bias": (8,),
}


def test_a_mask_of_twice_the_sigmoid_is_said_where_the_layer_is_unknown():
    weights = tensors(SEPARATE)
    layer = dcn_nnx.DeformConv(4, 5, 3, use_bias=False, mask_scale=2.0, rngs=rngs())
    to_flax(weights, layer)
    with pytest.warns(UserWarning, match=r"mask_scale=2\.0, which only an NNX model shows"):
        to_flax(weights, nnx.state(layer))


def test_a_mask_of_one_sigmoid_in_two_branches_is_loaded_by_convert():
    weights = tensors(SEPARATE)
    layer = dcn_nnx.DeformConv(4, 5, 3, use_bias=False, rngs=rngs())
    with pytest.raises(ValueError, match=r"if yours is sigmoid\(logits\), say so with convert="):
        to_flax(weights, layer)
    convert = {r"offset_conv\.kernel$": convolution, r"offset_conv\.bias$": np.asarray}
    found = to_flax(weights, layer, convert=convert)["offset_conv"]["bias"][...]
    parts = [weights["offset_conv.bias"], weights["modulator_conv.bias"]]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_points_that_differ_are_said_where_the_layer_is_unknown():
    weights = tensors(POINTS) | {"n_points_scale": np.repeat([1 / 3, 1], [3, 1])}
    options = dict(heads=2, levels=2, value_projection=False, output_projection=False)
    layer = dcn_nnx.MSDeformAttn(4, points=(3, 1), **options, rngs=rngs())
    to_flax(weights, layer)
    with pytest.warns(UserWarning, match=r"says points=\(3, 1\), which only an NNX model shows"):
        to_flax(weights, nnx.state(layer))
    to_flax(weights | {"n_points_scale": np.full(4, 0.5)}, nnx.state(layer))  # equal: no warning


def test_only_offset_branches_have_versions():
    with pytest.raises(ValueError) as error:
        to_flax(tensors({"fc.bias": (27,)}), zeros("fc.bias", shape=(18,)))
    assert "version" not in str(error.value)


def test_weights_of_an_ordinary_network_are_met_with_the_remedy():
    layer = dcn_nnx.DeformConv(2, 3, 1, rngs=rngs())
    ordinary = tensors({"weight": (3, 2, 1, 1), "bias": (3,)})
    with pytest.raises(ValueError, match='ordinary convolutions: give leave="offset_conv"'):
        to_flax(ordinary, layer)
    to_flax(ordinary, layer, leave="offset_conv")
    with pytest.raises(ValueError) as error:
        to_flax({"weight": ordinary["weight"]}, layer)
    assert "ordinary" not in str(error.value)


# ------------------------------------------------------------------------------- wrong arguments


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weights=None), "weights must be parameters by name, got a NoneType"),
        (
            dict(weights="w.pth"),
            r"weights must be parameters by name, got a str: .*read_state_dict",
        ),
        (
            dict(weights={"state_dict": {"a.bias": np.ones(3)}}),
            r"weights\['state_dict'\] must be an",
        ),
        (dict(weights={"epoch": 3}), r"weights\['epoch'\] must be an array, got a int"),
        (
            dict(like=None),
            "like must be an NNX model, its state, or Linen's variables, got NoneType without leaves",
        ),
        (dict(weights={3: np.ones(3)}), "weights must be parameters by name, got the name 3"),
        (dict(rename={"(": "a"}), r"rename has the pattern '\(', which is no regular expression"),
        (dict(rename={"a": r"\3"}), r"rename has the replacement '.*3' for 'a': invalid group"),
        (dict(rename={"a": 3}), "rename must be a table of regular expressions and replacements"),
        (dict(convert={"(": np.asarray}), r"convert has the pattern '\('"),
        (dict(convert={"a": 3}), "convert must be a table of regular expressions and functions"),
        (dict(like={}), "like must be an NNX model, .*, got dict without leaves"),
        (
            dict(like="model"),
            "like must be an NNX model, .*, got str with leaves that are no arrays",
        ),
        (dict(like=LinenNetwork()), "like must be variables, got the Linen module LinenNetwork"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = dict(weights={"a.bias": np.ones(3)}, like=zeros("a.bias"))
    with pytest.raises(ValueError, match=message):
        to_flax(**(good | change))


def test_torch_modules_and_tensors_with_gradients_are_understood():
    torch = pytest.importorskip("torch", reason="reads tensors")
    theirs = torch.nn.Linear(2, 3)
    like = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    with pytest.raises(ValueError, match=r"got the module Linear: give its state_dict\(\)"):
        to_flax(theirs, like)
    found = to_flax(dict(theirs.named_parameters()), like)
    np.testing.assert_array_equal(found["kernel"].T, theirs.weight.detach().numpy())


def test_a_model_is_filled_like_its_state():
    make = lambda: dcn_nnx.DeformConv(2, 3, 1, rngs=rngs())
    weights = tensors(
        {
            "weight": (3, 2, 1, 1),
            "bias": (3,),
            "conv_offset_mask.weight": (3, 2, 1, 1),
            "conv_offset_mask.bias": (3,),
        }
    )
    for model in (make(), nnx.eval_shape(make)):
        expected, found = to_flax(weights, nnx.state(model)), to_flax(weights, model)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_random_streams_keep_their_values():
    class Noisy(nnx.Module):
        def __init__(self):
            self.conv = nnx.Linear(2, 3, rngs=rngs())
            self.dropout = nnx.Dropout(0.1, rngs=rngs())

    weights = tensors({"conv.weight": (3, 2), "conv.bias": (3,)})
    _, report = to_flax_and_report(weights, Noisy())
    assert sorted(report.loaded_keys) == sorted(weights)
