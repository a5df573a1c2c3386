# SPDX-License-Identifier: MIT
"""Weights from elsewhere, and weights and programs for elsewhere."""

import json
import pathlib
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.devices import Placement
from examples.imagenet.errors import UserError
from examples.imagenet.evaluate import Network, load
from examples.imagenet.predict import load_on_one_device
from examples.imagenet.readers import open_reader
from examples.imagenet.settings import Model
from examples.imagenet.state import Arrays, Weights, make_predictor, split
from jax_dcn.interop.onnx import to_onnx
from jax_dcn.interop.torch_weights import read_state_dict, to_flax
from jax_dcn.nnx import DeformConv


def import_weights(
    source: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    model: Model = Model(),
    data: str | None = None,
    prefix: str = "",
    fresh: tuple[Literal["offset_conv", "fc"], ...] = (),
    key: str | None = None,
) -> None:
    """Makes PyTorch weights a checkpoint for the other commands, and for `train --initial`.

    Reads networks of torchvision, timm, mmdetection and the original repository.

    Args:
      source: A file .safetensors, or .pth (which needs torch).
      output: Folder for the checkpoint.
      model: The network that the weights are of.
      data: Where to take the names of the classes from, as for `train`; else they are numbers.
      prefix: What the names of the network's weights begin with in the file, such as "backbone.".
      fresh: Parts that are not in the file, to start at zero: offset_conv makes an ordinary network
        deformable; fc is the head.
      key: The entry of a .pth file that holds the weights, if several do, such as params_ema.
    """
    weights = read_weights(source, key)
    names = list(open_reader(data, "train").class_names) if data else _numbers(weights, prefix)
    network = nnx.eval_shape(lambda: model.build(len(names)))
    zeros = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), nnx.state(network))
    try:
        nnx.update(network, to_flax(weights, zeros, prefix=prefix, leave=fresh))
    except ValueError as error:
        raise UserError(f"{error}\nChoose the --depth, --conv and --stages of {source}.") from error
    with Checkpoints(output, write=True) as checkpoints:
        if checkpoints.latest is not None:
            raise UserError(f"{output} has checkpoints already: choose another folder.")
        arrays = jax.tree.map(jnp.asarray, split(network)[1])
        checkpoints.save_weights(arrays, Description(model, names))
    print(f"Wrote {output}.")


def read_weights(source: pathlib.Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file of PyTorch's, of its entry `key` if several hold arrays."""
    try:
        return read_state_dict(source, key=key)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {source}: check the path.") from error
    except (ImportError, ValueError) as error:
        message = str(error).replace("key=,", "--key,").replace("key=", "--key ")
        raise UserError(message) from error


def _numbers(weights: dict[str, np.ndarray], prefix: str) -> list[str]:
    head = weights.get(f"{prefix}fc.bias")
    if head is None:
        some = ", ".join(list(weights)[:3])
        raise UserError(
            f"The file has no {prefix}fc.bias to count classes by; its names are like {some}: give "
            "their beginning with --prefix, or name the data with --data."
        )
    return [str(index) for index in range(len(head))]


def initial_weights(run: pathlib.Path, fresh: Weights, placement: Placement) -> Weights:
    """The weights of another run, to start with.

    What it does not have stays fresh: the offset branch, if its convolutions are ordinary, and the
    head, if it knows other classes.
    """
    return over_fresh(run, fresh, load(run, None, placement, "float32").weights)


def over_fresh(run: pathlib.Path, fresh: Weights, kept: Weights) -> Weights:
    """The weights `kept` of a run where they fit, the `fresh` ones elsewhere."""
    misfits = [name for new, old in zip(fresh, kept, strict=True) for name in _misfits(new, old)]
    if misfits:
        raise UserError(
            f"The network in {run} differs from that of this run in {misfits[0]} and "
            f"{len(misfits) - 1} more: choose its --depth and --width."
        )
    return Weights(*(_over(new, old) for new, old in zip(fresh, kept, strict=True)))


def _misfits(fresh: Arrays, kept: Arrays) -> list[str]:
    names = sorted(fresh.keys() | kept.keys())
    may_be_fresh = re.compile(r"\boffset_conv\.|\b(fc|fc_cls|fc_reg|conv_logits|roi_layers)\b")
    return [name for name in names if not (_fits(fresh, kept, name) or may_be_fresh.search(name))]


def _over(fresh: Arrays, kept: Arrays) -> Arrays:
    return {name: kept[name] if _fits(fresh, kept, name) else fresh[name] for name in fresh}


def _fits(fresh: Arrays, kept: Arrays, name: str) -> bool:
    return name in fresh and name in kept and fresh[name].shape == kept[name].shape


def export(
    run: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    step: int | None = None,
) -> None:
    """Writes a network for use without this program.

    Args:
      run: Folder of a training run, or of imported weights.
      output: A file .safetensors gets the weights; a file .stablehlo gets a program that needs JAX
        alone, on CPU, GPU or TPU: `jax.export.deserialize(bytes).call(images)` makes probabilities
        of any number of images `[N, size, size, 3]` of uint8; a file .onnx gets a program for ONNX
        Runtime, which makes them of the same images in float32. Beside it go the names of classes.
      step: Which checkpoint; by default the best.
    """
    writers = {
        ".safetensors": _weights_as_bytes,
        ".stablehlo": _program_as_bytes,
        ".onnx": _as_onnx,
    }
    if output.suffix not in writers:
        raise UserError(f"{output} must end in {', '.join(writers)}.")
    network = load_on_one_device(run, step)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(writers[output.suffix](network))
    names = output.with_suffix(".json")
    names.write_text(json.dumps(network.description.class_names, indent=1) + "\n")
    print(f"Wrote {output} and {names}.")


def _weights_as_bytes(network: Network) -> bytes:
    from safetensors.numpy import save

    params, stats = network.weights
    return save({name: np.asarray(array) for name, array in (params | stats).items()})


def _as_onnx(network: Network) -> bytes:
    predict, weights = make_predictor(network.model), network.weights
    size = network.description.model.image_size
    try:
        model = to_onnx(
            lambda images: jax.nn.softmax(predict(weights, images)), ("count", size, size, 3)
        )
    except ImportError as error:
        raise UserError(str(error)) from error
    return model.SerializeToString()


def _program_as_bytes(network: Network) -> bytes:
    for _, layer in nnx.iter_modules(network.model):
        if isinstance(layer, DeformConv):
            layer.implementation = "xla"  # Runs where this package is not installed.
    predict = make_predictor(network.model)
    weights = jax.tree.map(np.asarray, network.weights)
    size = network.description.model.image_size
    (count,) = jax.export.symbolic_shape("count")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
    program = jax.jit(lambda images: jax.nn.softmax(predict(weights, images)))
    return jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(images).serialize()
