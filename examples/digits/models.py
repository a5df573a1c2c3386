# SPDX-License-Identifier: MIT
"""The classifier, and the kinds of convolution it is built with."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from examples.digits.data import CLASSES
from jax_dcn.nnx import DeformConv


class Classifier(nnx.Module):
    """A network of three convolutions with strides, the later two of the kind `conv`.

    Images `[N, 24, 24, 1]` become maps of 12x12, 6x6 and 3x3 positions, then `[N, CLASSES]`.
    """

    def __init__(self, conv: Callable, rngs: nnx.Rngs, features: int = 32):
        self.stem = nnx.Conv(1, 16, (3, 3), 2, rngs=rngs)
        self.stages = nnx.List(
            [
                conv(16, features, (3, 3), 2, rngs=rngs),
                conv(features, 2 * features, (3, 3), 2, rngs=rngs),
            ]
        )
        self.head = nnx.Linear(3 * 3 * 2 * features, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stages[1](self.stage_inputs(images)[1]))
        return self.head(x.reshape(x.shape[0], -1))

    def stage_inputs(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What each of the later convolutions reads."""
        x = nnx.relu(self.stem(images))
        return x, nnx.relu(self.stages[0](x))


# The first and the last differ by the convolution alone; with mask_scale=2.0, fresh deformable
# convolutions are ordinary ones. The network between has as many parameters as the last.
NETWORKS: dict[str, Callable[[nnx.Rngs], Classifier]] = {
    "ordinary": functools.partial(Classifier, nnx.Conv),
    "ordinary, wider": functools.partial(Classifier, nnx.Conv, features=39),
    "deformable": functools.partial(Classifier, functools.partial(DeformConv, mask_scale=2.0)),
}


def parameter_count(model: Classifier) -> int:
    """The number of trained values."""
    return sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
