# SPDX-License-Identifier: MIT
"""What `cuda_on_host.py` checks of aggregation: every call against `jax_dcn.reference`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from cuda_columns_checks import expect_near, set_chunk_bytes
from cuda_outside import outside

from jax_dcn import reference
from jax_dcn._src.deform_aggregate import cuda, native
from jax_dcn._src.sampling.bins import bin_words
from tests.deform_aggregate.cases import ARGUMENTS, CASES, AggregateCase

# Vectors of channels, of which a row has fewer than a part of a warp, as many, and more; more rows
# than keep the emulated GPU busy, so that each has its lanes alone; more samples than are located
# at once; a bin of all samples, which is longer than a warp sorts.
AGGREGATE_CASES = [
    *(case for case in CASES if case.name not in ("one_element", "many_queries")),
    AggregateCase("vectors", 2, ((5, 7), (2, 3)), (4, 3), 11, 3, 16),
    AggregateCase("many_rows", 1, ((6, 5), (3, 4)), (2, 5), 67, 8, 32),
    AggregateCase("many_vectors", 1, ((4, 3),), (3,), 6, 2, 280),
    AggregateCase("many_samples", 1, ((7, 6), (3, 2)), (23, 18), 5, 2, 24),
    AggregateCase("one_target", 2, ((4, 5), (9, 7)), (3, 2), 131, 2, 8),
]
WIDE_TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
TOLERANCE = WIDE_TOLERANCE | {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def check_aggregate(case: AggregateCase, dtype: str, seed: int) -> None:
    """Value, tangent and gradients, with the lists of one, two or all groups at once."""
    wide = "float64" if dtype == "float64" else "float32"
    types = (dtype, wide, wide)
    arrays = _operands(case, types, seed)
    dots = [_cast(a, t) for a, t in zip(_all_arrays(case, seed + 100), types, strict=True)]
    grad_y = _cast(case.cotangent(seed=seed), dtype)
    geometry = dataclasses.replace(
        case.geometry, unit_square=seed % 2 == 1, whole_positions=seed % 4 > 1
    )
    if geometry.unit_square:
        arrays[1] = _in_unit_square(arrays[1], case)
    lists = bin_words(case.queries * case.samples[-1], geometry.pixels, arrays[1].dtype)
    sizes = 4 * lists, 8 * lists, 40 * 10**6
    set_chunk_bytes(sizes[(AGGREGATE_CASES.index(case) + seed + 1) % 3])
    wrt = ARGUMENTS if case.weighted else ARGUMENTS[:2]
    some = wrt[seed % 2 : seed % 2 + 1]
    options = dict(geometry=geometry)

    @jax.jit
    def actual(arrays, dots, grad_y):
        of = dict(zip(ARGUMENTS, dots, strict=True))
        results = list(native.deform_aggregate(*arrays, **options))
        for names in (wrt, some):
            tangents = [of[name] for name in names]
            along = dict(wrt=names, **options)
            results += native.deform_aggregate_jvp(*arrays, *tangents, **along)
            results += cuda.deform_aggregate_backward(*arrays, grad_y, **along)
        return results

    first, second = (actual(arrays, dots, grad_y) for _ in "12")
    right = _expected(case, geometry, wrt, some[0], arrays, dots, grad_y)
    labels = ("y", "tangent", *wrt, f"tangent along {some[0]}", f"{some[0]} alone")
    for name, one, two, value in zip(labels, first, second, right, strict=True):
        label = f"{name} of {case} in {dtype}"
        # The emulator runs threads in another order each time, and has other multiprocessors.
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes(), f"{label} varies"
        tolerance = TOLERANCE[np.asarray(one).dtype.name]
        if name.startswith("tangent along"):
            # The tangent along x alone need not be NaN where a position is.
            one, value = (np.where(np.isnan(right[0]), 0, a) for a in (one, value))
        expect_near(label, one, value, tolerance)


def _expected(case, geometry, wrt, alone: str, *inputs) -> list[np.ndarray]:
    """The results of the reference: value, tangent and all gradients, and then the tangent and the gradient
    of the argument `alone` by itself."""
    arrays, dots, grad_y = jax.tree.map(lambda a: np.asarray(a, np.float64), inputs)
    compute = outside(_reference, geometry, wrt)
    y, tangent, *grads = compute(arrays, dots, grad_y)
    along = [dot if name == alone else 0 * dot for name, dot in zip(ARGUMENTS, dots, strict=True)]
    return [y, tangent, *grads, compute(arrays, along, grad_y)[1], grads[wrt.index(alone)]]


def _reference(geometry, wrt: tuple[str, ...], arrays, dots, grad_y) -> list[jax.Array]:
    """The value, the tangent and the gradients."""
    along = dict(wrt=wrt, geometry=geometry)
    return [
        reference.deform_aggregate(*arrays, geometry=geometry),
        reference.deform_aggregate_jvp(*arrays, *dots[: len(wrt)], **along),
        *reference.deform_aggregate_backward(*arrays, grad_y, **along),
    ]


# One map more than the kernels take, and as many.
MAP_LIMITS = [
    AggregateCase("most_maps", 1, ((2, 3),) * 16, (1,) * 16, 3, 2, 4),
    AggregateCase("more_maps", 1, ((2, 3),) * 17, (1,) * 17, 3, 2, 4),
]


def check_map_limits(case: AggregateCase, dtype: str, seed: int) -> None:
    """The rule in Python and the handler in C++ agree."""
    arrays = _operands(case, (dtype,) * 3, seed)
    why_not, refused = cuda.why_not(*arrays, geometry=case.geometry), None
    try:
        jax.block_until_ready(native.deform_aggregate(*arrays, geometry=case.geometry))
    except jax.errors.JaxRuntimeError as error:
        refused = str(error)
    assert (why_not is None) == (refused is None), f"{case}: {why_not}, but {refused}"
    assert (why_not or "") in (refused or ""), f"{case}: {why_not}, but {refused}"


def _all_arrays(case: AggregateCase, seed: int) -> list[np.ndarray]:
    x, positions, weights = case.arrays(seed=seed)
    return [x, positions, np.zeros((*case.samples[:3], 0)) if weights is None else weights]


def _operands(case: AggregateCase, types: tuple[str, ...], seed: int) -> list[jax.Array]:
    """Those of the primitive. Some positions lie far away, or nowhere, and others at one place."""
    x, positions, weights = _all_arrays(case, seed)
    random = np.random.default_rng(seed)
    odd = random.choice([np.inf, -np.inf, np.nan, 1e30, -3e9], positions.shape)
    positions = np.where(random.random(odd.shape) < 0.003, odd, positions)
    if case.name == "one_target":
        positions = np.full_like(positions, 1.25)
    return [_cast(a, t) for a, t in zip((x, positions, weights), types, strict=True)]


def _cast(array: np.ndarray, dtype: str) -> jax.Array:
    return jnp.asarray(array).astype(dtype)


def _in_unit_square(positions: jax.Array, case: AggregateCase) -> jax.Array:
    """`(y, x)` in pixels as `(x, y)`, away from whole pixels, where rounding decides the side."""
    sizes = np.repeat(np.array(case.shapes), case.points, axis=0)
    whole = np.floor(positions)
    apart = whole + 0.25 + (np.asarray(positions) - whole) / 2
    return jnp.asarray(((apart + 0.5) / sizes)[..., ::-1].astype(positions.dtype))
