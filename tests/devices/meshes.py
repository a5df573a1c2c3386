# SPDX-License-Identifier: MIT
"""Meshes of devices, and `deform_conv2d` on arrays that are placed on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jax_dcn import deform_conv2d
from tests.deform_conv2d.cases import ARGUMENTS, Case


def mesh(kind: AxisType = AxisType.Auto, **sizes: int) -> jax.sharding.Mesh:
    devices = jax.devices("cpu")[: int(np.prod(list(sizes.values())))]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes), devices=devices)


MESH = mesh(data=4, model=2)


def operator(case: Case, implementation: str | None = None):
    return functools.partial(deform_conv2d, **case.options, implementation=implementation)


def gradients(case: Case, implementation: str | None = None):
    weights = case.cotangent()
    f = operator(case, implementation)
    return jax.grad(lambda *arrays: jnp.vdot(f(*arrays), weights), range(5))


def place(case: Case, mesh=MESH, **specs: P) -> list[jax.Array]:
    return [
        jax.device_put(array, NamedSharding(mesh, specs.get(name, P())))
        for name, array in zip(ARGUMENTS, case.arrays(), strict=True)
    ]


def spec_of(array: jax.Array) -> P | None:
    """How an array is split, without the `None` at the end that explicit types write.

    `None` where JAX 0.8 has no name for the split: along a part of an axis of the mesh.
    """
    if not isinstance(array.sharding, NamedSharding):
        return None
    spec = array.sharding.spec
    return P(*spec[: max((i + 1 for i, axes in enumerate(spec) if axes), default=0)])
