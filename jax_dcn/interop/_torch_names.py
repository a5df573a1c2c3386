# SPDX-License-Identifier: MIT
"""Names that PyTorch networks give to the modules and parameters of a Flax network."""

import re
from collections.abc import Collection, Iterable, Sequence

# PyTorch's names of Flax's parameters and statistics.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# PyTorch's names of the branch `offset_conv` of the layer `{layer}`, which is `{parent}{name}.`:
_OFFSET_BRANCHES = (
    "{layer}offset_conv.",  # this library
    "{layer}conv_offset.",  # mmcv; DeformConvPack of the original repository
    "{layer}conv_offset_mask.",  # DCNv2; ModulatedDeformConvPack of the original repository
    "{parent}{name}_offset.",  # mmdetection before it used mmcv's layers; detectron2
    "{parent}conv_offset_mask.",  # ModulatedDeformConv in the original mmdetection
)

OFFSET_BRANCH = "offset_conv"
MASK_BRANCH = "modulator_conv"
_CONVOLUTION = "regular_conv"


class Names:
    """Finds the PyTorch parameters of a Flax variable by its path.

    Args:
      weights: Names of the PyTorch parameters.
      paths: Names of the Flax modules around each variable, outermost first, and of the variable.
      prefix: The beginning of every name in `weights`.
    """

    def __init__(self, weights: Iterable[str], paths: Collection[Sequence[str]], prefix: str):
        self._weights = frozenset(weights)
        self._torch_modules = {
            name[: dot.end()] for name in self._weights for dot in re.finditer(r"\.", name)
        }
        self._flax_modules = {_dotted(path[:depth]) for path in paths for depth in range(len(path))}
        self._layers = {_dotted(path[:-1]) for path in paths if path[-1] == "kernel"}
        self._prefix = prefix

    def find(self, modules: Sequence[str], leaf: str) -> tuple[str, ...]:
        """Names of the tensors that make up a variable, stacked along the first axis; or none."""
        for parents in self._existing(self._homes(modules)):
            for spelling in _leaf_spellings(leaf):
                names = tuple(f"{parent}{spelling}" for parent in parents)
                if all(name in self._weights for name in names):
                    return names
            return ()  # Never some leaves of one module and some leaves of another.
        return ()

    def expected(self, modules: Sequence[str], leaf: str) -> list[str]:
        """All the names that a variable may have in PyTorch, the likeliest first."""
        homes = [home[0] for home in self._homes(modules) if len(home) == 1]
        if not self.is_offset_branch(modules):
            in_lists = self._prefix + _dotted(_spellings(name)[-1] for name in modules)
            in_sequences = re.sub(r"(^|\.)layers\.(?=\d)", r"\1", in_lists)
            homes = list(dict.fromkeys([homes[-1], in_lists, in_sequences]))
        return [f"{home}{LEAVES.get(leaf, leaf)}" for home in homes]

    def is_offset_branch(self, modules: Sequence[str]) -> bool:
        return list(modules[-1:]) == [OFFSET_BRANCH]

    def is_deformable(self, modules: Sequence[str]) -> bool:
        """Whether the Flax module at a path has a kernel and an offset branch."""
        return _dotted(modules) in self._layers and self._has(modules, OFFSET_BRANCH)

    def _has(self, modules: Sequence[str], name: str) -> bool:
        """Whether the Flax module at a path has a module of its own under `name`."""
        return _dotted([*modules, name]) in self._flax_modules

    def _homes(self, modules: Sequence[str]) -> list[tuple[str, ...]]:
        """PyTorch modules that may hold a Flax module's parameters, in order of preference."""
        if not self.is_offset_branch(modules):
            module = self._torch_module(modules)
            is_inside = self.is_deformable(modules) and not self._has(modules, _CONVOLUTION)
            return [*([(f"{module}{_CONVOLUTION}.",)] if is_inside else []), (module,)]
        outer = modules[:-1]
        layer = self._torch_module(outer)
        parent, _, name = layer.removesuffix(".").rpartition(".")
        parts = dict(layer=layer, parent=f"{parent}." if parent else "", name=name)
        branches = _OFFSET_BRANCHES if layer.endswith(".") else _OFFSET_BRANCHES[:3]
        homes = [(branch.format(**parts),) for branch in branches]
        is_pair = self.is_deformable(outer) and not self._has(outer, MASK_BRANCH)
        return [*([(*homes[0], f"{layer}{MASK_BRANCH}.")] if is_pair else []), *homes]

    def _existing(self, homes: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        modules = self._torch_modules | {""}
        return [home for home in homes if modules.issuperset(home) or home == (self._prefix,)]

    def _torch_module(self, modules: Sequence[str]) -> str:
        """The PyTorch module of a Flax module, with a dot at the end.

        Linen names the item `conv[1]` of a list `conv_1`. Flax keeps the items of a `Sequential` in
        `layers`, PyTorch only numbers them. An exact name wins over such a reading, and another Flax
        module's exact name is never taken.
        """
        module = self._prefix
        for depth, name in enumerate(modules):
            parent = _dotted(modules[:depth])
            if name == "layers" and self._is_sequence(module, parent, modules[depth + 1 :]):
                continue
            for spelling in [*_spellings(name), *re.findall(r"^layers_(\d+)$", name)]:
                is_taken = spelling != name and f"{parent}{spelling}." in self._flax_modules
                if f"{module}{spelling}." in self._torch_modules and not is_taken:
                    module = f"{module}{spelling}."
                    break
            else:
                module = f"{module}{name}."
        return module

    def _is_sequence(self, module: str, parent: str, inner: Sequence[str]) -> bool:
        """Whether PyTorch has the first of the names `inner` in `module` itself, not in `layers`."""
        item = f"{inner[0]}." if inner and inner[0].isdigit() else None
        return (
            item is not None
            and f"{module}layers." not in self._torch_modules
            and f"{module}{item}" in self._torch_modules
            and f"{parent}{item}" not in self._flax_modules
        )


def common_prefix(names: Collection[str], expected: Collection[str]) -> str:
    """The likeliest prefix of a network: after it, most of the `expected` names end a name."""
    counts: dict[str, int] = {}
    known = set(expected)
    for name in names:
        for dot in re.finditer(r"\.", name):
            if name[dot.end() :] in known:
                counts[name[: dot.end()]] = counts.get(name[: dot.end()], 0) + 1
                break
    return max(counts, key=lambda prefix: counts[prefix], default="")


def _spellings(name: str) -> list[str]:
    """A name as it is, then as an item of a list: `convs_0_1` may be `convs_0.1` or `convs.0.1`."""
    spellings = [name]
    while (item := re.sub(r"_(\d+(?:\.\d+)*)$", r".\1", spellings[-1])) != spellings[-1]:
        spellings.append(item)
    return spellings


def _leaf_spellings(leaf: str) -> list[str]:
    return list(dict.fromkeys([leaf, LEAVES.get(leaf, leaf)]))


def _dotted(modules: Iterable[str]) -> str:
    return "".join(f"{name}." for name in modules)
