# SPDX-License-Identifier: MIT
"""Attention modules of Hugging Face and layers here, with the same parameters, are the same function.

Samples are away from whole coordinates, where slopes differ by rounding alone: everything is float64.
"""

import contextlib
import dataclasses
import importlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="compares with PyTorch")
pytest.importorskip("transformers", reason="compares with Hugging Face")
from jax_dcn import linen  # noqa: E402
from jax_dcn.interop.torch_weights import to_flax  # noqa: E402
from jax_dcn.nnx import MSDeformAttn  # noqa: E402

FEATURES, HEADS, QUERIES, BATCH = 16, 2, 5, 3
SHAPES = ((3, 4), (2, 3), (1, 2))
PIXELS = 20
RANDOM = np.random.default_rng(0)
QUERY, COTANGENT = RANDOM.normal(size=(2, BATCH, QUERIES, FEATURES))
VALUE = RANDOM.normal(size=(BATCH, PIXELS, FEATURES))
KEEP = RANDOM.uniform(size=(BATCH, PIXELS)) < 0.8
POINTS = RANDOM.uniform(size=(BATCH, QUERIES, 3, 2))
BOXES = np.concatenate([POINTS, RANDOM.uniform(0.1, 0.6, POINTS.shape)], -1)


@dataclasses.dataclass(frozen=True)
class Family:
    """A class of Hugging Face.

    Attributes:
      name: Of the folder of the models.
      prefix: Of the classes' names.
      config: Arguments of the configuration.
      arguments: Of the class, after or instead of the configuration.
      options: Of the layer here.
      reference: Points or boxes.
      keeps: Whether masks are `True` for pixels that count; `None`: the test gives no mask.
    """

    name: str
    prefix: str
    config: dict[str, Any]
    arguments: tuple
    options: dict[str, Any]
    reference: np.ndarray
    keeps: bool | None = True

    def module(self):
        folder = f"transformers.models.{self.name}"
        modeling = importlib.import_module(f"{folder}.modeling_{self.name}")
        made = getattr(modeling, f"{self.prefix}MultiscaleDeformableAttention")
        if not self.config:
            return made(*self.arguments)
        configuration = importlib.import_module(f"{folder}.configuration_{self.name}")
        model = self.prefix.removesuffix("PixelDecoderEncoder")
        return made(getattr(configuration, f"{model}Config")(**self.config), *self.arguments)


DETR = dict(d_model=FEATURES, num_feature_levels=3, disable_custom_kernels=True)
V2 = dict(d_model=FEATURES, decoder_attention_heads=HEADS)
FOUR = BOXES[:, :, :1]  # these models have the same box in all levels


def like_detr(name: str, prefix: str, reference: np.ndarray = BOXES) -> Family:
    return Family(name, prefix, DETR, (HEADS, 2), dict(points=2), reference)


def like_mask2former(name: str, prefix: str) -> Family:
    arguments = FEATURES, HEADS, 3, 2
    return Family(
        name, f"{prefix}PixelDecoderEncoder", {}, arguments, dict(points=2), POINTS, False
    )


def like_dfine(name: str, prefix: str) -> Family:
    config = V2 | dict(num_feature_levels=3, decoder_n_points=[3, 6, 3])
    options = dict(points=(3, 6, 3), value_projection=False, output_projection=False)
    return Family(name, prefix, config, (), options, FOUR, keeps=None)


FAMILIES = {
    "Deformable DETR": like_detr("deformable_detr", "DeformableDetr", POINTS),
    "Grounding DINO": like_detr("grounding_dino", "GroundingDino"),
    "MM Grounding DINO": like_detr("mm_grounding_dino", "MMGroundingDino", POINTS),
    "RT-DETR": like_detr("rt_detr", "RTDetr"),
    "LW-DETR": like_detr("lw_detr", "LwDetr"),
    "RF-DETR": like_detr("rf_detr", "RfDetr"),
    "OmDet-Turbo": like_detr("omdet_turbo", "OmDetTurbo"),
    "PP-DocLayoutV2": like_detr("pp_doclayout_v2", "PPDocLayoutV2"),
    "PP-DocLayoutV3": like_detr("pp_doclayout_v3", "PPDocLayoutV3"),
    "PP-DocLayoutV4": like_detr("pp_doclayout_v4", "PPDocLayoutV4"),
    "Mask2Former": like_mask2former("mask2former", "Mask2Former"),
    "OneFormer": like_mask2former("oneformer", "OneFormer"),
    "RT-DETRv2": Family(
        "rt_detr_v2",
        "RTDetrV2",
        V2 | dict(decoder_n_levels=3, decoder_n_points=2, decoder_offset_scale=0.7),
        (),
        dict(points=2, offset_scale=0.7),
        FOUR,
    ),
    "RT-DETRv2 discrete": Family(
        "rt_detr_v2",
        "RTDetrV2",
        V2 | dict(decoder_n_levels=3, decoder_n_points=2, decoder_method="discrete"),
        (),
        dict(points=2, method="discrete"),
        FOUR,
    ),
    "D-FINE": like_dfine("d_fine", "DFine"),
    "DEIMv2": like_dfine("deimv2", "Deimv2"),
}


def randomized(module):
    """The module in float64, with random parameters: offsets of about a pixel."""
    torch.manual_seed(0)
    module = module.double()
    if hasattr(module, "num_points_scale"):  # rounded to float32
        module.num_points_scale = 1 / (1 / module.num_points_scale).round()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def of_torch(family: Family, module) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The result, and the gradients by the names of parameters and inputs."""
    inputs = {
        name: torch.tensor(array, requires_grad=True)
        for name, array in dict(query=QUERY, value=VALUE, reference=family.reference).items()
    }
    mask = None if family.keeps is None else torch.tensor(KEEP if family.keeps else ~KEEP)
    sizes = dict(spatial_shapes_list=list(SHAPES))
    if "spatial_shapes" in inspect.signature(module.forward).parameters:
        sizes["spatial_shapes"] = torch.tensor(SHAPES)
    y, _ = module(
        inputs["query"],
        attention_mask=mask,
        encoder_hidden_states=inputs["value"],
        reference_points=inputs["reference"],
        **sizes,
    )
    with_gradients = inputs | dict(module.named_parameters())
    found = torch.autograd.grad(
        y, list(with_gradients.values()), torch.tensor(COTANGENT), materialize_grads=True
    )
    gradients = {n: g.numpy() for n, g in zip(with_gradients, found, strict=True)}
    return y.detach().numpy(), gradients


def of_flax(family: Family, call, params) -> tuple[jax.Array, dict, tuple]:
    """The result, and the gradients of parameters and inputs."""
    mask = None if family.keeps is None else KEEP

    def f(params, query, value, reference):
        return call(params, query, reference, value, spatial_shapes=SHAPES, value_mask=mask)

    @jax.jit
    def value_and_gradients(*arrays):
        y, vjp = jax.vjp(f, *arrays)
        return y, vjp(jnp.asarray(COTANGENT))

    y, (of_params, *of_inputs) = value_and_gradients(params, QUERY, VALUE, family.reference)
    return y, of_params, of_inputs


def said_points(points) -> contextlib.AbstractContextManager:
    """Linen variables do not show the points of each level: where these differ, a warning says them."""
    differ = isinstance(points, tuple)
    return pytest.warns(UserWarning, match="says points=") if differ else contextlib.nullcontext()


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_of_hugging_face_give_equal_results_and_gradients(name):
    family = FAMILIES[name]
    module = randomized(family.module())
    weights = module.state_dict()
    options = dict(heads=HEADS, levels=3, param_dtype=jnp.float64) | family.options
    layer = MSDeformAttn(FEATURES, **options, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(layer)
    twin = linen.MSDeformAttn(FEATURES, **options)
    like = jax.eval_shape(
        lambda: twin.init(jax.random.key(0), QUERY, family.reference, VALUE, spatial_shapes=SHAPES)
    )
    with said_points(options["points"]):
        variables = to_flax(weights, like)
    calls = {
        "nnx": (
            lambda state, *args, **named: nnx.merge(graph, state)(*args, **named),
            to_flax(weights, layer),
        ),
        "linen": (twin.apply, variables),
    }
    expected, gradients = of_torch(family, module)
    for flax, (call, params) in calls.items():
        y, of_params, of_inputs = of_flax(family, call, params)
        np.testing.assert_allclose(y, expected, atol=1e-12, err_msg=flax)
        for key, gradient in zip(("query", "value", "reference"), of_inputs, strict=True):
            np.testing.assert_allclose(gradient, gradients[key], atol=1e-11, err_msg=key)
        tree = nnx.to_pure_dict(of_params) if flax == "nnx" else of_params["params"]
        for path, gradient in jax.tree_util.tree_leaves_with_path(tree):
            dense, leaf = (key.key for key in path)
            wanted = gradients[f"{dense}.{dict(kernel='weight').get(leaf, leaf)}"]
            wanted = wanted.T if leaf == "kernel" else wanted
            np.testing.assert_allclose(gradient, wanted, atol=1e-11, err_msg=f"{dense} {leaf}")


def test_first_parameters_are_those_of_hugging_face():
    from transformers.models.d_fine import modeling_d_fine

    family = FAMILIES["D-FINE"]
    configuration = importlib.import_module("transformers.models.d_fine.configuration_d_fine")
    module, config = family.module(), configuration.DFineConfig(**family.config)
    modeling_d_fine.DFinePreTrainedModel(config)._init_weights(module)
    layer = MSDeformAttn(FEATURES, heads=HEADS, levels=3, **family.options, rngs=nnx.Rngs(0))
    fresh, loaded = nnx.state(layer), to_flax(module.state_dict(), layer)
    for a, e in zip(jax.tree.leaves(fresh), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-6)
    assert np.any(loaded["sampling_offsets"]["bias"][...])


def test_points_that_the_checkpoint_denies_are_refused():
    family = FAMILIES["D-FINE"]
    weights = family.module().state_dict()
    options = family.options | dict(points=4)  # twelve samples in all, as well
    layer = MSDeformAttn(FEATURES, heads=HEADS, levels=3, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"points=\(3, 6, 3\), as num_points_scale says"):
        to_flax(weights, layer)
    renamed = {f"decoder.0.{name}".replace("num_", "n_"): w for name, w in weights.items()}
    with pytest.raises(ValueError, match=r"\(3, 6, 3\), as decoder.0.n_points_scale says"):
        to_flax(renamed, layer, prefix="decoder.0.")
