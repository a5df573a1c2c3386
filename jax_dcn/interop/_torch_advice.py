# SPDX-License-Identifier: MIT
"""Advice for parameters that do not fit a network: the option that mends it, ready to copy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_dcn.interop._torch_arrays import Misfit
from jax_dcn.interop._torch_names import MASK_BRANCH, OFFSET_BRANCH, Names, common_prefix
from jax_dcn.interop._torch_variables import Variable

# The part of a name that `torch.compile` adds.
_COMPILED = "_orig_mod."

# The condition of advice on branches: a shape does not show the order of offsets.
_ORDER = "the offsets are in pairs (dy, dx) (docs/checkpoints.md says how to reorder others)"


class Outcome(NamedTuple):
    """A finished conversion: parameters and variables that fit, and those that do not.

    Attributes:
      weights: PyTorch parameters by name.
      names, prefix: The names of the network in `weights`, and their beginning.
      used: Paths of the filled variables by names of parameters.
      unexpected: Names of parameters that fill no variable.
      missing: Variables that no parameter filled, with their names in PyTorch.
      misfits: Variables with the names of the tensors that cannot fill them.
    """

    weights: Mapping[str, np.ndarray]
    names: Names
    prefix: str
    used: Mapping[str, str]
    unexpected: Sequence[str]
    missing: Sequence[tuple[Variable, Sequence[str]]]
    misfits: Sequence[tuple[Variable, Sequence[str], Misfit]]

    def is_branch(self, variable: Variable) -> bool:
        """Whether a variable is of an offset branch."""
        return self.names.is_offset_branch(variable.modules)


def advice(outcome: Outcome) -> list[str]:
    """Sentences that say how to mend what does not fit."""
    separate = _separate_branches(outcome)
    hints = [
        *(_prefix(outcome) or separate or _renamed_branches(outcome) or _ordinary(outcome)),
        *_branch_without_bias(outcome),
        *_layer_without_bias(outcome),
        *_misshapen(outcome, with_branches=not separate),
        *_uncertain(outcome),
    ]
    return list(dict.fromkeys(hints))


def _prefix(outcome: Outcome) -> list[str]:
    """Advice for names with a beginning, or a part, that the network does not have."""
    unused = outcome.weights.keys() - outcome.used.keys()
    if outcome.missing and any(_COMPILED in name for name in unused):
        return [
            f"Compiled modules add `{_COMPILED}` to the names of their parameters: give "
            f'rename={{r"{re.escape(_COMPILED)}": ""}}.'
        ]
    start = len(outcome.prefix)
    missing = [[name[start:] for name in names] for _, names in outcome.missing]
    prefix = common_prefix(unused, {name for names in missing for name in names})
    names = [*missing, *([name.removeprefix(outcome.prefix)] for name in outcome.used)]
    found = [any(f"{prefix}{name}" in outcome.weights for name in spelled) for spelled in names]
    if not prefix or sum(found) <= len(outcome.used):
        return []
    return [
        f'The names begin with `{prefix}`. With prefix="{prefix}" more of them may be found.',
    ]


def _separate_branches(outcome: Outcome) -> list[str]:
    """Advice for a convolution of offsets and one of masks that stand elsewhere in `weights`."""
    found = [(variable, names[0]) for variable, names, _ in outcome.misfits if len(names) == 1]
    kernels = [*((variable, None) for variable, _ in outcome.missing), *found]
    table: dict[str, str] = {}
    for variable, name in filter(lambda kernel: _is_kernel(outcome, kernel[0]), kernels):
        branch = outcome.names.expected(variable.modules, "kernel")[0]
        unexpected = [other for other in outcome.unexpected if other not in table]
        offset = _nearest(outcome, branch, variable, 2, [name] if name else unexpected)
        mask = _nearest(outcome, branch, variable, 1, unexpected)
        if offset and mask:
            layer = branch.removesuffix(f"{OFFSET_BRANCH}.weight")
            table |= {offset: branch, mask: f"{layer}{MASK_BRANCH}.weight"}
    if not table:
        return []
    (offset, branch), (mask, _), *_ = table.items()
    return [
        f"{offset} and {mask} together have the shape of an offset branch: if they are {branch}, "
        f"and {_ORDER}, give {_rename(table)}."
    ]


def _renamed_branches(outcome: Outcome) -> list[str]:
    """Advice for branches that have other names in `weights`."""
    table: dict[str, str] = {}
    kernels = [entry for entry in outcome.missing if _is_kernel(outcome, entry[0])]
    for variable, (branch, *_) in kernels:
        unexpected = [other for other in outcome.unexpected if other not in table]
        if name := _nearest(outcome, branch, variable, 3, unexpected):
            table[name] = branch
    if not table:
        return []
    name, branch = next(iter(table.items()))
    return [
        f"{name} has the shape of an offset branch: if it is {branch}, and {_ORDER}, give "
        f"{_rename(table)}."
    ]


def _ordinary(outcome: Outcome) -> list[str]:
    """Advice for branches of which `weights` has no tensor."""
    branches = {variable.modules: None for variable, _ in outcome.missing}
    if not branches or outcome.unexpected or any(_is_there(outcome, b) for b in branches):
        return []
    if any(OFFSET_BRANCH in path.split(".") for path in outcome.used.values()):
        leave = repr([".".join(branch) for branch in branches])
        return [f"Only offset branches are missing: give leave={leave} to leave them as they are."]
    return [
        "Only offset branches are missing, as in weights of ordinary convolutions: give "
        f'leave="{OFFSET_BRANCH}" to leave the branches as they are.'
    ]


def _is_there(outcome: Outcome, branch: Sequence[str]) -> bool:
    """Whether a module is in no offset branch, or is one with a tensor in `weights`."""
    find = outcome.names.find
    return OFFSET_BRANCH not in branch or any(find(branch, leaf) for leaf in ("kernel", "bias"))


def _branch_without_bias(outcome: Outcome) -> list[str]:
    """Advice for branches that have a bias in the network, and none in `weights`."""
    kernels = [
        outcome.names.find(variable.modules, "kernel")
        for variable, _ in outcome.missing
        if variable.leaf == "bias" and outcome.is_branch(variable)
    ]
    sizes = {
        f"{name.removesuffix('weight')}bias": len(outcome.weights[name])
        for names in kernels
        for name in names
    }
    absent = {name: size for name, size in sizes.items() if name not in outcome.weights}
    table = ", ".join(f'"{name}": np.zeros({size})' for name, size in absent.items())
    zeros = f"Offset branches in weights have no bias: add zeros, weights |= {{{table}}}."
    return [zeros] if absent else []


def _layer_without_bias(outcome: Outcome) -> list[str]:
    """Advice for layers that have a bias in `weights`, and none in the network."""
    if any(f"{name.removesuffix('bias')}weight" in outcome.used for name in outcome.unexpected):
        return [
            "A layer has a bias here and none in the network: give it one with use_bias=True. "
            "Deformable layers of the original's branch pytorch_1.0.0 add a bias even if they "
            "were made with bias=False."
        ]
    return []


def _misshapen(outcome: Outcome, *, with_branches: bool) -> list[str]:
    """Advice that the shapes of tensors suggest."""
    hints = []
    for variable, _, misfit in outcome.misfits:
        is_branch = outcome.is_branch(variable)
        if with_branches or not is_branch:
            hints.append(misfit.hint(is_branch, variable.module is not None))
    return list(filter(None, hints))


def _uncertain(outcome: Outcome) -> list[str]:
    uncertain = [variable for variable, _, misfit in outcome.misfits if misfit.kind == "uncertain"]
    if not uncertain:
        return []
    is_state = all(variable.module is None for variable in uncertain)
    model = "give the NNX model itself rather than its state, " if is_state else ""
    return [
        f"Uncertain tensors: {model}say how to order the axes with convert=, or leave the module "
        "with leave=."
    ]


def _is_kernel(outcome: Outcome, variable: Variable) -> bool:
    """Whether a variable is the kernel of an offset branch."""
    return variable.leaf == "kernel" and outcome.is_branch(variable)


def _nearest(
    outcome: Outcome, branch: str, variable: Variable, thirds: int, names: Iterable[str]
) -> str:
    """The name nearest to `branch` of a tensor with so many thirds of a kernel's features, or none."""
    *size, channels, features = np.shape(variable.value)
    wanted = (features * thirds, channels * 3, *(3 * axis for axis in size))
    alike = [n for n in names if wanted == tuple(3 * axis for axis in outcome.weights[n].shape)]
    return max(alike, key=lambda name: _common_modules(name, branch), default="")


def _common_modules(name: str, other: str) -> int:
    """The number of outer modules that two names have in common."""
    pairs = list(zip(name.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _rename(table: Mapping[str, str]) -> str:
    """The option that gives the modules of tensors other names."""
    modules = {old.removesuffix("weight"): new.removesuffix("weight") for old, new in table.items()}
    entries = [f'r"^{re.escape(old)}": "{new}"' for old, new in modules.items() if old != new]
    return f"rename={{{', '.join(entries)}}}"
