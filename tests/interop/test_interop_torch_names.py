# SPDX-License-Identifier: MIT
"""`to_flax` gives every variable the tensor of its own name, and obeys the options for names."""

import jax
import numpy as np
import pytest
from flax import linen as nn, nnx

from jax_dcn import nnx as dcn_nnx
from jax_dcn.interop.torch_weights import convolution, to_flax, to_flax_and_report

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
