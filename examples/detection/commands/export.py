# SPDX-License-Identifier: MIT
"""Detectors as files for use without this program."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from examples.detection.commands.predict import Loaded, load_detector
from examples.detection.data.images import normalise
from examples.detection.model.detect import run as run_stages
from examples.detection.model.networks import Detector
from examples.imagenet.errors import OptionError, check_option, check_suffix
from examples.imagenet.weights import make_portable, onnx_as_bytes, write_export

_SCORE_THRESHOLD = 0.05


def export(
    run: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    score_threshold: float | None = None,
    high: bool = False,
    step: int | None = None,
) -> None:
    """Writes a detector for use without this program.

    A file .stablehlo gets a program that needs JAX alone, on CPU, GPU or TPU:
    `jax.export.deserialize(bytearray(file)).call(pixels, sizes)` takes images `[N, H, W, 3]` of uint8
    on one canvas, and their heights and widths `[N, 2]` in float32 without the padding. It makes a
    dictionary of `boxes` `[N, 100, 4]` in pixels of the canvas, `scores`, `labels` and `valid`
    `[N, 100]`, and `masks` `[N, 100, 28, 28]` of Mask R-CNN.

    A file .onnx gets the network from one normalised image to the raw heads: `P2` to `P6`,
    `rpn_cls2` to `rpn_cls6` before the sigmoid, and `rpn_reg2` to `rpn_reg6`.

    Beside the file go the names of classes, and the height and width of the canvas.

    Args:
      run: Folder of a training run, or of imported weights.
      output: A file .stablehlo or .onnx.
      score_threshold: Detections of the .stablehlo program have higher scores; by default 0.05.
      high: Whether the canvas is for images that are higher than wide.
      step: Which checkpoint; by default the best.
    """
    writers: dict[str, Callable[[Loaded, tuple[int, int], float], bytes]] = {
        ".stablehlo": _program,
        ".onnx": _onnx,
    }
    check_suffix(output, writers)
    check_option("score_threshold", score_threshold, 0, 1)
    if output.suffix == ".onnx" and score_threshold is not None:
        raise OptionError("--score-threshold has no effect on a file .onnx, which has raw scores.")
    loaded = load_detector(run, step)
    canvas = loaded.architecture.view.canvas(high)
    threshold = _SCORE_THRESHOLD if score_threshold is None else score_threshold
    content = writers[output.suffix](loaded, canvas, threshold)
    write_export(output, content, {"class_names": loaded.class_names, "canvas": canvas})


def _program(loaded: Loaded, canvas: tuple[int, int], score_threshold: float) -> bytes:
    make_portable(loaded.detector)
    graph, state = nnx.split(loaded.detector)
    state = jax.tree.map(np.asarray, state)

    def detect(pixels: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        images = normalise(pixels, sizes, jnp.ones_like(sizes))
        found = run_stages(nnx.merge(graph, state), images, score_threshold).detections
        return {name: value for name, value in found._asdict().items() if value is not None}

    (count,) = jax.export.symbolic_shape("count")
    pixels = jax.ShapeDtypeStruct((count, *canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((count, 2), jnp.float32)
    exporter = jax.export.export(jax.jit(detect), platforms=("cpu", "cuda", "tpu"))
    return exporter(pixels, sizes).serialize()


class RawHeads(nnx.Module):
    """The part of a detector whose shapes follow from the shape of the image."""

    def __init__(self, detector: Detector):
        self.backbone, self.neck = detector.backbone, detector.neck
        self.rpn_head = detector.rpn_head

    def __call__(self, image: jax.Array) -> list[jax.Array]:
        pyramid = self.neck(self.backbone.features(image))
        logits, deltas = zip(*map(self.rpn_head, pyramid), strict=True)
        return [*pyramid, *logits, *deltas]


def _onnx(loaded: Loaded, canvas: tuple[int, int], _: float) -> bytes:
    heads = RawHeads(loaded.detector)
    heads.eval()
    names = [f"{kind}{level}" for kind in ("P", "rpn_cls", "rpn_reg") for level in range(2, 7)]
    return onnx_as_bytes(heads, (1, *canvas, 3), input_names=["image"], output_names=names)
