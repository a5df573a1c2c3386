# SPDX-License-Identifier: MIT
"""What is timed on a GPU: our kernels, XLA's products and convolution, and torchvision."""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention.cases import AttentionCase
from jax_dcn import deform_conv2d, ms_deform_attn
from tests.deform_conv2d.cases import Case
from tests.deform_roi_pool.cases import RoICase

Layer = Case | AttentionCase | RoICase

# (dtype, precision of products): TF32 is what XLA does with float32 unless it is told otherwise.
NUMBERS = {
    "float16": ("float16", "default"),
    "bfloat16": ("bfloat16", "default"),
    "tf32": ("float32", "default"),
    "float32": ("float32", "highest"),
}
MODES = ("forward", "backward")
REPEATS = 20  # of a function in one measurement, so that a launch is small beside it


ARGUMENTS = {
    Case: ("x", "kernel", "offset", "mask", "bias"),
    AttentionCase: ("value", "locations", "weights"),
    RoICase: ("x", "rois", "offset", "mask"),
}
WIDE = ("offset", "mask", "locations", "weights", "rois")  # in float32 at least


def numbers_of(layer: Layer) -> list[str]:
    """The numbers that a layer computes in. Attention and pooling multiply no matrices, in TF32 or not."""
    return [n for n in NUMBERS if n != "tf32" or isinstance(layer, Case)]


def arrays_of(layer: Layer, dtype: str) -> tuple[list[jax.Array], jax.Array]:
    """The operands and the cotangent."""
    arrays = [
        jnp.asarray(a).astype("float32" if name in WIDE else dtype)
        for name, a in zip(ARGUMENTS[type(layer)], layer.arrays(), strict=True)
    ]
    return arrays, jnp.asarray(layer.cotangent()).astype(dtype)


def programs(
    layer: Layer, number: str, implementation: str | None = None, precision: str | None = None
) -> dict[str, Callable]:
    """The operator, and all its gradients, as functions of the operands."""
    dtype, usual = NUMBERS[number]
    if isinstance(layer, AttentionCase):
        options = dict(spatial_shapes=layer.shapes, implementation=implementation)
        f = functools.partial(ms_deform_attn, **options)
    elif isinstance(layer, RoICase):
        f = layer.function(implementation)
    else:
        options = dict(**layer.options, precision=precision or usual)
        f = functools.partial(deform_conv2d, **options, implementation=implementation)
    return with_backward(f, arrays_of(layer, dtype)[1])


def with_backward(f: Callable, grad_y: jax.Array) -> dict[str, Callable]:
    def backward(*arrays):
        return jax.vjp(f, *arrays)[1](unknown(grad_y))

    return {"forward": f, "backward": backward}


def unknown(array: jax.Array) -> jax.Array:
    """An array that XLA does not know when it compiles, so that no work on it alone is left out."""
    return jax.lax.optimization_barrier(array)


def gradients_of(f: Callable, grad_y: jax.Array, operands: Sequence[int]) -> Callable:
    """The gradients of some operands alone."""

    def gradients(*arrays):
        def of_some(*some):
            moved = dict(zip(operands, some, strict=True))
            return f(*(moved.get(i, array) for i, array in enumerate(arrays)))

        return jax.vjp(of_some, *(arrays[i] for i in operands))[1](unknown(grad_y))

    return gradients


def repeatedly(functions: dict[str, Callable], arrays: list) -> dict[str, Callable]:
    """`REPEATS` runs of each, one after the other in one program."""

    def repeated(g):
        def step(values, _):
            # The next run's kernel hangs on each of this one's results, so that none is left out.
            results = jax.lax.optimization_barrier(jax.tree.leaves(g(*values)))
            zero = sum(0 * result.ravel()[0].astype(jnp.float32) for result in results)
            moved = values[1] + jnp.full_like(values[1], zero)
            return (values[0], moved, *values[2:]), zero

        run = jax.jit(lambda *values: jax.lax.scan(step, values, length=REPEATS)[1])
        return lambda: jax.block_until_ready(run(*arrays))

    return {mode: repeated(function) for mode, function in functions.items()}


def ordinary_convolution(case: Case, number: str) -> dict[str, Callable]:
    dtype, precision = NUMBERS[number]
    (x, kernel, _, _, bias), grad_y = arrays_of(case, dtype)

    def convolve(x, kernel, bias):
        with jax.default_matmul_precision(precision):
            return case.ordinary_convolution(x, kernel) + bias[None, None, None, :]

    return repeatedly(with_backward(convolve, grad_y), [x, kernel, bias])


def torchvision(case: Case, number: str) -> dict[str, Callable]:
    """Torchvision's operator in its better layout; nothing where it is not, or not of the dtype."""
    if not importlib.util.find_spec("torchvision") or number == "bfloat16":
        return {}
    import torch
    from torchvision.ops import deform_conv2d as operator

    if not torch.cuda.is_available() and jax.default_backend() == "gpu":
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and number != "float32":
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = number == "tf32"
    dtype = torch.float16 if number == "float16" else torch.float32

    def tensor(array, axes=None):
        array = torch.from_numpy(np.array(array, np.float32)).to(device, dtype)
        return (array if axes is None else array.permute(axes)).contiguous()

    x, kernel, offset, mask, bias = case.arrays()
    channels_first = (0, 3, 1, 2)
    operands = [
        tensor(x, channels_first),
        tensor(offset.reshape(*offset.shape[:3], -1), channels_first),
        tensor(kernel, (3, 2, 0, 1)),
        tensor(bias),
    ]
    mask = tensor(mask.reshape(*mask.shape[:3], -1), channels_first)
    grad_y = tensor(case.cotangent(), channels_first)
    (top, _), (left, _) = case.geometry.padding
    options = dict(stride=case.strides, padding=(top, left), dilation=case.kernel_dilation)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for array in (*operands, mask):
        array.requires_grad_()

    def forward():
        with torch.no_grad():
            for _ in range(REPEATS):
                operator(*operands, mask=mask, **options)
        synchronize()

    def backward():
        for _ in range(REPEATS):
            y = operator(*operands, mask=mask, **options)
            torch.autograd.grad(y, (*operands, mask), grad_y)
        synchronize()

    return {"forward": forward, "backward": backward}


def contestants(layer: Layer, number: str) -> tuple[dict[str, dict[str, Callable]], dict[str, str]]:
    """The functions of each contestant, which have run once, and why others cannot run.

    Another contestant may fail, our kernels may not be missing.
    """
    arrays, _ = arrays_of(layer, NUMBERS[number][0])
    makers: dict[str, Callable[[], dict[str, Callable]]] = {
        # By name: where the kernel is missing, XLA must not be timed in its place.
        "native": lambda: repeatedly(programs(layer, number, "native"), arrays),
        "xla": lambda: repeatedly(programs(layer, number, "xla"), arrays),
    }
    if isinstance(layer, Case):
        makers["convolution"] = lambda: ordinary_convolution(layer, number)
        makers["torchvision"] = lambda: torchvision(layer, number)
    found, failed = {}, {}
    for name, make in makers.items():
        try:
            functions = make()
            for function in functions.values():
                function()
        except Exception as error:
            if name == "native" and isinstance(error, NotImplementedError):
                raise
            failed[name] = reason(error)
        else:
            found |= {name: functions} if functions else {}
    return found, failed


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
