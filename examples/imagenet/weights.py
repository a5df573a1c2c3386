# SPDX-License-Identifier: MIT
"""Weights from elsewhere, and weights and programs for elsewhere."""

import json
import logging
import pathlib
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.devices import Placement
from examples.imagenet.errors import UserError, check_suffix
from examples.imagenet.evaluate import Network, load
from examples.imagenet.predict import load_on_one_device
from examples.imagenet.readers import open_reader
from examples.imagenet.settings import Model
from examples.imagenet.state import Arrays, Weights, make_predictor, split
from jax_dcn.interop.onnx import to_onnx
from jax_dcn.interop.torch_weights import read_state_dict, to_flax

_UNLIKE_MASKS = {"v2", "v2-exact"}  # Values of --conv with equal arrays.
_NAMED = 4  # Names of arrays in a list, at most.
_MAY_BE_ABSENT = re.compile(r"\boffset_conv\.|\.roi_layers\.|^roi_head\.mask_head\.")
"""Parts that a network may have more than another network, whose weights it starts with."""
_OF_CLASSES = re.compile(
    r"^(fc|roi_head\.bbox_head\.(\d+\.)?fc_(cls|reg)|roi_head\.mask_head\.conv_logits)\."
)
"""Layers whose shapes follow from the number of classes."""


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


def initial_weights(
    run: pathlib.Path, model: Model, fresh: Weights, placement: Placement
) -> Weights:
    """The weights of another run, to start a network of `model` with."""
    network = load(run, None, placement, "float32")
    conv = network.description.model.conv
    if {conv, model.conv} == _UNLIKE_MASKS:
        raise other_network(run, "--conv", conv, model.conv)
    return over_fresh(run, fresh, network.weights, "--depth, --width and --conv")


def other_network(run: pathlib.Path, option: str, there: str, here: str) -> UserError:
    """The answer to weights whose arrays fit, and that another network was trained with."""
    return UserError(
        f"The network in {run} has {option} {there}, and computes something else with the same "
        f"weights than {option} {here}: choose {option} {there}."
    )


def over_fresh(run: pathlib.Path, fresh: Weights, kept: Weights, options: str) -> Weights:
    """The weights `kept` of a run where they fit, the `fresh` ones elsewhere.

    Fresh are the offset branches, the branches of pooling and the mask head, if the run has none,
    and the heads, if the run has another number of classes.

    Args:
      run: Folder of the run.
      fresh: Weights of the network that starts.
      kept: Weights of the run.
      options: What to choose as in the run, if other arrays do not fit.
    """
    mine, theirs = (weights.params | weights.stats for weights in (fresh, kept))
    misfits = _misfits(mine, theirs)
    if misfits:
        name, more = misfits[0], len(misfits) - 1
        there, here = (_shape(arrays, name) or "none" for arrays in (theirs, mine))
        others = f" and {more} more arrays" if more else ""
        raise UserError(
            f"The network in {run} differs from that of this run in {name} (there {there}, here "
            f"{here}){others}: choose its {options}."
        )
    if jax.process_index() == 0:
        print(f"From {run}: {_summary(mine, theirs)}")
    return Weights(*(_over(part, theirs) for part in fresh))


def _misfits(mine: Arrays, theirs: Arrays) -> list[str]:
    names = sorted(mine.keys() | theirs.keys())
    return [
        name for name in names if not (_fits(mine, theirs, name) or _may_differ(mine, theirs, name))
    ]


def _may_differ(mine: Arrays, theirs: Arrays, name: str) -> bool:
    in_both = name in mine and name in theirs
    return bool(_OF_CLASSES.match(name) or (_MAY_BE_ABSENT.search(name) and not in_both))


def _fits(mine: Arrays, theirs: Arrays, name: str) -> bool:
    return name in mine and _shape(mine, name) == _shape(theirs, name)


def _shape(arrays: Arrays, name: str) -> tuple[int, ...] | None:
    return arrays[name].shape if name in arrays else None


def _over(fresh: Arrays, theirs: Arrays) -> Arrays:
    return {name: theirs[name] if _fits(fresh, theirs, name) else fresh[name] for name in fresh}


def _summary(mine: Arrays, theirs: Arrays) -> str:
    """How many arrays are taken from a run, and which are not."""
    fresh = [name for name in mine if not _fits(mine, theirs, name)]
    lists = {"Fresh": fresh, "Not used": list(theirs.keys() - mine.keys())}
    words = [f" {title}: {_some(names)}." for title, names in lists.items() if names]
    return f"{len(mine) - len(fresh)} arrays.{''.join(words)}"


def _some(names: list[str]) -> str:
    shown = sorted(names)[:_NAMED] + ["..."] * (len(names) > _NAMED)
    return f"{len(names)} ({', '.join(shown)})"


def widened(weights: Weights, dtype: str) -> Weights:
    """The weights for training in `dtype`, in at least float32."""
    # Batch normalisation makes its statistics in float32 whatever it is told.
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.tree.map(lambda array: array.astype(wide), weights)


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
    check_suffix(output, writers)
    network = load_on_one_device(run, step)
    write_export(output, writers[output.suffix](network), network.description.class_names)


def write_export(output: pathlib.Path, content: bytes, about: Any) -> None:
    """Writes a file and, beside the file, what its user has to know, as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    beside = output.with_suffix(".json")
    beside.write_text(json.dumps(about, indent=1) + "\n")
    print(f"Wrote {output} and {beside}.")


def _weights_as_bytes(network: Network) -> bytes:
    from safetensors.numpy import save

    params, stats = network.weights
    return save({name: np.asarray(array) for name, array in (params | stats).items()})


def _as_onnx(network: Network) -> bytes:
    predict, weights = make_predictor(network.model), network.weights
    size = network.description.model.image_size
    shape = ("count", size, size, 3)
    return onnx_as_bytes(lambda images: jax.nn.softmax(predict(weights, images)), shape)


def onnx_as_bytes(call: Callable, *arguments: Any, **options: Any) -> bytes:
    """What `to_onnx` makes of a call, as a file holds it."""
    # jax2onnx warns of its optional parts that do not fit this version of JAX.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    try:
        return to_onnx(call, *arguments, **options).SerializeToString()
    except ImportError as error:
        raise UserError(str(error)) from error


def _program_as_bytes(network: Network) -> bytes:
    make_portable(network.model)
    predict = make_predictor(network.model)
    weights = jax.tree.map(np.asarray, network.weights)
    size = network.description.model.image_size
    (count,) = jax.export.symbolic_shape("count")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
    program = jax.jit(lambda images: jax.nn.softmax(predict(weights, images)))
    return jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(images).serialize()


def make_portable(model: nnx.Module) -> None:
    """Lets a network run where this package is not installed."""
    for _, layer in nnx.iter_modules(model):
        if hasattr(layer, "implementation"):
            layer.implementation = "xla"
