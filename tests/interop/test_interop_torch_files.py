# SPDX-License-Identifier: MIT
"""`read_state_dict` finds the parameters in a file, or says what to choose."""

import argparse
import json
import pathlib
import re

import numpy as np
import pytest

from jax_dcn.interop.torch_weights import read_state_dict, to_flax

torch = pytest.importorskip("torch", reason="writes the files")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="writes .safetensors")

CONTAINERS = "state_dict model params params_ema model_state_dict state_dict_ema net generator"


def tensors(start: float = 0) -> dict:
    return {"a.weight": start + torch.arange(6.0).reshape(3, 2), "a.bias": start + torch.ones(3)}


def saved(content, path):
    torch.save(content, path / "w.pth")
    return path / "w.pth"


def check(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy())


@pytest.mark.parametrize("container", CONTAINERS.split())
def test_one_set_of_parameters_is_found_under_any_key(container, tmp_path):
    state = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {container: tensors(), "epoch": 3, "iteration": 7, "optimizer": state}
    check(read_state_dict(saved(content, tmp_path)), tensors())
    nested = {"model": {container: tensors(), "step": 3}, "optimizer": state}
    check(read_state_dict(saved(nested, tmp_path)), tensors())


def test_a_key_chooses_among_several_sets(tmp_path):
    content = {"params": tensors(), "params_ema": tensors(1), "extra": {"ema": tensors(2)}}
    path = saved(content, tmp_path)
    with pytest.raises(ValueError, match=r"choose one of \['extra', 'params', 'params_ema'\] with"):
        read_state_dict(path)
    for start, key in enumerate(["params", "params_ema", "extra", "extra.ema"]):
        check(read_state_dict(path, key=key), tensors(min(start, 2)))
    with pytest.raises(
        ValueError, match=r"no entry 'net': 'net' is not one of \['extra', 'params'"
    ):
        read_state_dict(path, key="net")
    with pytest.raises(ValueError, match=r"'extra.nets': 'nets' is not one of \['ema'\]"):
        read_state_dict(path, key="extra.nets")


STRAY = {
    "latent_avg": torch.zeros(8),
    "decay": torch.tensor(0.9),
    "rng": {"cpu": torch.ones(4).byte()},
}
SCORES = {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}}}
OPTIMIZER = {"state": {"a.weight": {"exp_avg": torch.ones(3, 2)}}, "param_groups": []}


def test_parameters_of_the_file_itself_are_the_set(tmp_path):
    content = {**tensors(), "normalisation": {"mean": torch.zeros(3)}}
    check(read_state_dict(saved(content, tmp_path)), tensors())


@pytest.mark.parametrize("container", ["state_dict", "generator"])
@pytest.mark.parametrize("inside", [True, False])
def test_tensors_beside_the_one_set_of_parameters_do_not_hide_it(container, inside, tmp_path):
    content = {container: tensors(), **STRAY, **SCORES, "optimizer": OPTIMIZER}
    content = {"ema": content, "step": torch.tensor(3.0)} if inside else content
    check(read_state_dict(saved(content, tmp_path)), tensors())


@pytest.mark.parametrize(
    "names",
    [["d", "g_ema"], ["generator", "net"], ["state_dict", "swa_state_dict"], ["ema", "model"]],
)
def test_no_set_of_parameters_is_preferred(names, tmp_path):
    content = {name: tensors() for name in names}
    message = rf"choose one of {re.escape(str(names))} with key=, for example key='{names[0]}'"
    with pytest.raises(ValueError, match=message):
        read_state_dict(saved(content | STRAY, tmp_path))
    message = rf"\['a.{names[0]}', 'a.{names[1]}'\] with key=, for example key='a.{names[0]}'"
    for key in (None, "a"):
        with pytest.raises(ValueError, match=message):
            read_state_dict(saved({"a": content}, tmp_path), key=key)


def test_the_only_scalars_of_an_entry_are_read_by_its_key(tmp_path):
    path = saved({"scales": {"a": torch.tensor(2.0)}, "epoch": 3}, tmp_path)
    with pytest.raises(ValueError, match=r"no parameters, only \['epoch', 'scales'\]"):
        read_state_dict(path)
    assert read_state_dict(path, key="scales")["a"] == 2


def test_a_scalar_beside_the_parameters_is_not_one_of_them(tmp_path):
    content = {"model": tensors(), "iteration": torch.tensor(3)}
    check(read_state_dict(saved(content, tmp_path)), tensors())


def test_parameters_that_require_gradients_are_read(tmp_path):
    layer = torch.nn.Linear(2, 3)
    found = read_state_dict(saved(dict(layer.named_parameters()), tmp_path))
    check(found, {name: value.detach() for name, value in layer.named_parameters()})
    like = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    np.testing.assert_array_equal(to_flax(found, like)["bias"], layer.bias.detach().numpy())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"]
)
def test_values_of_every_dtype_are_exact(dtype, suffix, tmp_path):
    value = torch.tensor([[0.0, 1.0, 0.1]]).double().to(getattr(torch, dtype))
    path = tmp_path / f"w.{suffix}"
    (torch.save if suffix == "pth" else safetensors_torch.save_file)({"a": value}, path)
    found = read_state_dict(path)["a"]
    np.testing.assert_array_equal(found, value.double().numpy())
    narrow = dtype in ("bfloat16", "float8_e4m3fn")
    assert found.dtype == ("float32" if narrow else dtype)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"])
def test_narrow_dtypes_become_float32(dtype, suffix, tmp_path):
    pytest.importorskip("safetensors", "0.8", reason="knows the dtypes")
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    value = torch.tensor([1.0, 2.0, 0.5]).to(getattr(torch, dtype))
    path = tmp_path / f"w.{suffix}"
    (torch.save if suffix == "pth" else safetensors_torch.save_file)({"a": value}, path)
    found = read_state_dict(path)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1, 2, 0.5])


def test_a_dtype_without_an_array_is_named(tmp_path):
    pytest.importorskip("safetensors", "0.8", reason="knows the dtype")
    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(
        ValueError, match=r"a has the dtype F4, .*: save the tensor in another dtype"
    ):
        read_state_dict(path)


def test_a_key_without_effect_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors_torch.save_file(tensors(), path)
    with pytest.raises(ValueError, match="key='params' has no effect"):
        read_state_dict(path, key="params")


# ------------------------------------------------------------------------- kinds of files, and damage


def test_options_and_numbers_of_a_training_program_do_not_hide_the_parameters(tmp_path):
    content = {
        "model": tensors(),
        "args": argparse.Namespace(lr=1e-4, layers=[1, 2]),
        "best": np.float64(0.5),
        "history": np.arange(3, dtype=np.int32),
    }
    check(read_state_dict(saved(content, tmp_path)), tensors())


def test_arrays_of_numpy_are_parameters(tmp_path):
    arrays = {name: value.numpy() for name, value in tensors().items()}
    check(read_state_dict(saved(arrays, tmp_path)), tensors())
    np.savez(tmp_path / "w.npz", **arrays)
    check(read_state_dict(tmp_path / "w.npz"), tensors())


def write_shard(path, content):
    is_pickled = path.suffix == ".bin"
    torch.save(content, path) if is_pickled else safetensors_torch.save_file(content, path)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_network_in_several_files_is_read_by_its_index(kind, tmp_path):
    stem, suffix = kind.split(".")
    files = {name: f"{stem}-{i}-of-2.{suffix}" for i, name in enumerate(tensors(), 1)}
    for name, file in files.items():
        write_shard(tmp_path / file, {name: tensors()[name]})
    index = tmp_path / f"{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    check(read_state_dict(index), tensors())
    index.write_text(json.dumps({"weight_map": files | {"b": files["a.bias"]}}))
    with pytest.raises(ValueError, match=f"b is in {stem}-2-of-2.{suffix}, which does not hold it"):
        read_state_dict(index)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(ValueError, match="has no weight_map"):
            read_state_dict(index)


def test_capital_letters_do_not_change_the_kind_of_a_file(tmp_path):
    safetensors_torch.save_file(tensors(), tmp_path / "w.SAFETENSORS")
    check(read_state_dict(tmp_path / "w.SAFETENSORS"), tensors())


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (POINTER, "is a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        ("half", "is damaged, or no"),
        (b"nonsense", "is damaged, or no|is no file of torch.save"),
    ],
)
def test_files_without_content_say_so(suffix, content, message, tmp_path):
    path = tmp_path / f"w.{suffix}"
    if content == "half":
        write = {"pth": torch.save, "safetensors": safetensors_torch.save_file}
        write["npz"] = lambda arrays, path: np.savez(path, **arrays)
        write[suffix](tensors(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_state_dict(path)
    assert str(path) in str(error.value)


def test_a_single_array_is_no_file_of_parameters(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(2, np.float32))
    path = (tmp_path / "w.npy").rename(tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"is damaged, or no \.npz file"):
        read_state_dict(path)


def test_a_file_that_begins_with_the_byte_of_a_bracket_is_no_web_page(tmp_path):
    """A .safetensors file begins with the size of its header, in binary."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x13C)
    value = np.array([2.5], np.float32)
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + value.tobytes())
    assert path.read_bytes()[:1] == b"<"
    np.testing.assert_array_equal(read_state_dict(path)["a"], value)


@pytest.mark.filterwarnings("ignore")  # torch says that TorchScript is old
def test_a_program_of_torchscript_is_met_with_the_remedy(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)).save(path)
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load\(path\)\.state_dict\(\)"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [{"a": pathlib.PurePosixPath("x")}, torch.nn.Linear(2, 3)])
def test_files_of_other_objects_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match="more than tensors"):
        read_state_dict(saved(content, tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_without_an_array_are_named(make):
    with pytest.raises(ValueError, match=r"a\.bias must be a dense tensor"):
        to_flax({"a.bias": make()}, {"a": {"bias": np.zeros(3)}})
