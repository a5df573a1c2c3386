# SPDX-License-Identifier: MIT
"""`read_state_dict` finds the parameters in a file, or says what to choose."""

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
    with pytest.raises(ValueError, match=r"choose one of \['params', 'params_ema'\] with key="):
        read_state_dict(path)
    for start, key in enumerate(["params", "params_ema", "extra", "extra.ema"]):
        check(read_state_dict(path, key=key), tensors(min(start, 2)))
    with pytest.raises(
        ValueError, match=r"no entry 'net': 'net' is not one of \['extra', 'params'"
    ):
        read_state_dict(path, key="net")
    with pytest.raises(ValueError, match=r"'extra.nets': 'nets' is not one of \['ema'\]"):
        read_state_dict(path, key="extra.nets")


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


def test_a_key_without_effect_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors_torch.save_file(tensors(), path)
    with pytest.raises(ValueError, match="key='params' has no effect"):
        read_state_dict(path, key="params")
