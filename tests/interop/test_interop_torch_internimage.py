# SPDX-License-Identifier: MIT
"""Blocks of InternImage and FlashInternImage compute what they compute in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="compares with PyTorch")
from jax_dcn.interop.torch_weights import read_state_dict, to_flax  # noqa: E402
from tests.interop import torch_internimage  # noqa: E402

FEATURES, GROUPS = 6, 3
X, COTANGENT = np.random.default_rng(0).normal(size=(2, 2, 5, 7, FEATURES))
BLOCKS = {
    "InternImage-T": ("DCNv3", dict()),
    "InternImage-L": ("DCNv3", dict(offset_scale=2.0)),
    "InternImage-H": ("DCNv3", dict(dw_kernel_size=5, center_feature_scale=True)),
    "FlashInternImage": ("DCNv4", dict()),
    "FlashInternImage with all": (
        "DCNv4",
        dict(dw_kernel_size=3, center_feature_scale=True, remove_center=True),
    ),
}


@pytest.fixture(autouse=True)
def promotion():
    """Flax's norms mix float64 with float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def randomized(block):
    torch.manual_seed(0)
    block = block.double()
    for name, parameter in block.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if ".1.1.weight" in name or "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_from_a_file_compute_what_they_compute_in_torch(name, tmp_path):
    kind, options = BLOCKS[name]
    theirs = getattr(torch_internimage, kind)(FEATURES, GROUPS, **options)
    theirs = randomized(torch_internimage.Block(theirs))
    saved = {f"levels.0.blocks.1.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"model": saved, "epoch": 7}, tmp_path / "internimage.pth")
    weights = read_state_dict(tmp_path / "internimage.pth")
    x = torch.tensor(X, requires_grad=True)
    expected = theirs(x)
    (gradient,) = torch.autograd.grad(expected, x, torch.tensor(COTANGENT))

    ours = torch_internimage.NNXBlock(kind, FEATURES, groups=GROUPS, **options)
    graph, _ = nnx.split(ours)
    twin = torch_internimage.LinenBlock(kind, dict(groups=GROUPS, **options))
    like = jax.eval_shape(twin.init, jax.random.key(0), X)
    calls = {
        "nnx": (lambda state, x: nnx.merge(graph, state)(x), ours),
        "linen": (twin.apply, like),
    }
    for flax, (call, variables) in calls.items():
        loaded = to_flax(weights, variables, prefix="levels.0.blocks.1.")

        @jax.jit
        def value_and_gradient(variables, x, call=call):
            y, vjp = jax.vjp(lambda x: call(variables, x), x)
            return y, *vjp(jnp.asarray(COTANGENT))

        y, grad_x = value_and_gradient(loaded, X)
        np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-11, err_msg=flax)
        np.testing.assert_allclose(grad_x, gradient.numpy(), atol=1e-10, err_msg=flax)
