# SPDX-License-Identifier: MIT
"""A call of every public function and layer, with the shapes of its arrays by sizes."""

import functools

from flax import nnx

import jax_dcn
from jax_dcn.interop import torchvision
from jax_dcn.nnx import DCNv3, DeformConv, DeformRoIPool, MSDeformAttn

# For each function: the function, the shapes of its arrays by sizes, and the sizes.
POOL = functools.partial(jax_dcn.deform_roi_pool, spatial_scale=0.5, pooled_size=2, trans_std=0.1)
ROWS = {
    "deform_conv2d": (
        lambda implementation: functools.partial(
            jax_dcn.deform_conv2d, implementation=implementation
        ),
        lambda n, h, w, c, o, g: [(n, h, w, c), (1, 2, c, o), (n, h, w, g, 2, 2), (n, h, w, g, 2)],
        dict(n=2, h=3, w=4, c=6, o=5, g=2),
    ),
    "deform_roi_pool": (
        lambda implementation: (
            lambda x, *arrays: POOL(
                x, *arrays, output_dim=x.shape[-1], implementation=implementation
            )
        ),
        lambda n, h, w, c, r, k: [(n, h, w, c), (r, 5), (r, 2, 2, k, 2), (r, 2, 2)],
        dict(n=2, h=3, w=4, c=6, r=5, k=2),
    ),
    "deform_roi_pool by cells": (
        lambda implementation: (
            lambda x, *arrays: POOL(
                x,
                *arrays,
                group_size=2,
                output_dim=x.shape[-1] // 4,
                implementation=implementation,
            )
        ),
        lambda n, h, w, c, r, k: [(n, h, w, c), (r, 5), (r, 2, 2, k, 2), (r, 2, 2)],
        dict(n=2, h=3, w=4, c=8, r=5, k=2),
    ),
    "deform_roi_align": (
        lambda implementation: functools.partial(
            jax_dcn.deform_roi_align,
            spatial_scale=0.5,
            pooled_size=2,
            implementation=implementation,
        ),
        lambda n, h, w, c, r: [(n, h, w, c), (r, 5), (r, 2, 2, 1, 2), (r, 2, 2)],
        dict(n=2, h=3, w=4, c=6, r=5),
    ),
    "deform_aggregate": (
        lambda implementation: functools.partial(
            jax_dcn.deform_aggregate, shapes=((2, 3),), implementation=implementation
        ),
        lambda n, s, c, q, g, t: [(n, s, c), (n, q, g, t, 2), (n, q, g, t)],
        dict(n=2, s=6, c=4, q=3, g=2, t=5),
    ),
    "ms_deform_attn": (
        lambda implementation: functools.partial(
            jax_dcn.ms_deform_attn, spatial_shapes=((2, 3),), implementation=implementation
        ),
        lambda n, s, m, d, q, p: [(n, s, m, d), (n, q, m, 1, p, 2), (n, q, m, 1, p)],
        dict(n=2, s=6, m=4, d=3, q=7, p=5),
    ),
    "grid_sample": (
        lambda implementation: functools.partial(
            jax_dcn.grid_sample, implementation=implementation
        ),
        lambda n, h, w, c, ho, wo: [(n, h, w, c), (n, ho, wo, 2)],
        dict(n=2, h=3, w=4, c=5, ho=6, wo=7),
    ),
    "dcnv3": (
        lambda implementation: functools.partial(
            jax_dcn.dcnv3, kernel_size=(1, 2), implementation=implementation
        ),
        lambda n, h, w, c, g: [(n, h, w, c), (n, h, w, g, 2, 2), (n, h, w, g, 2)],
        dict(n=2, h=3, w=4, c=6, g=2),
    ),
    "dcnv4": (
        lambda implementation: functools.partial(
            jax_dcn.dcnv4, groups=2, kernel_size=(1, 2), implementation=implementation
        ),
        lambda n, h, w, c, packed: [(n, h, w, c), (n, h, w, packed)],
        dict(n=2, h=3, w=4, c=6, packed=16),
    ),
    "torchvision": (
        lambda implementation: torchvision.deform_conv2d,
        lambda n, h, w, c, o, g: [(n, c, h, w), (n, 2 * g, h, w), (o, c, 1, 1)],
        dict(n=2, h=3, w=4, c=6, o=5, g=2),
    ),
    "nnx.DeformConv": (
        lambda implementation: DeformConv(6, 5, 1, implementation=implementation, rngs=nnx.Rngs(0)),
        lambda n, h, w: [(n, h, w, 6)],
        dict(n=2, h=3, w=4),
    ),
    "nnx.MSDeformAttn": (
        lambda implementation: functools.partial(
            MSDeformAttn(6, heads=2, levels=1, implementation=implementation, rngs=nnx.Rngs(0)),
            spatial_shapes=((2, 3),),
        ),
        lambda n, q, s, c: [(n, q, c), (n, q, 2), (n, s, c)],
        dict(n=2, q=5, s=6, c=6),
    ),
    "nnx.DCNv3": (
        lambda implementation: DCNv3(
            6, groups=2, kernel_size=1, implementation=implementation, rngs=nnx.Rngs(0)
        ),
        lambda n, h, w: [(n, h, w, 6)],
        dict(n=2, h=3, w=4),
    ),
    "nnx.DeformRoIPool": (
        lambda implementation: DeformRoIPool(
            6,
            2,
            spatial_scale=0.5,
            hidden_features=3,
            implementation=implementation,
            rngs=nnx.Rngs(0),
        ),
        lambda n, h, w, r: [(n, h, w, 6), (r, 5)],
        dict(n=2, h=3, w=4, r=5),
    ),
}
