# SPDX-License-Identifier: MIT
"""The conversion of PyTorch parameters to Flax variables, with a record of all that does not fit."""

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_dcn.interop import _torch_arrays
from jax_dcn.interop._torch_advice import Outcome, advice
from jax_dcn.interop._torch_arrays import Misfit
from jax_dcn.interop._torch_names import (
    LEAVES,
    MASK_BRANCH,
    Names,
)
from jax_dcn.interop._torch_variables import Variable

# The module that predicts offsets in attention layers, and the buffers beside it which say, sample by
# sample, the share 1 / n of a level's n points.
_OFFSETS = "sampling_offsets"
_POINT_SHARES = ("num_points_scale", "n_points_scale")


class Report(NamedTuple):
    """Names of PyTorch parameters that were loaded, missing or unexpected.

    Attributes:
      loaded_keys: Parameters that filled a variable.
      missing_keys: Variables that no parameter filled, by their names in PyTorch.
      unexpected_keys: Parameters that fill no variable.
    """

    loaded_keys: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]


class Conversion:
    """Fills variables one by one, then reports.

    Args:
      weights: PyTorch parameters by name.
      variables: All variables of the network.
      prefix, leave, convert: See `torch_weights.to_flax`.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        variables: Sequence[Variable],
        prefix: str,
        leave: Collection[str],
        convert: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    ):
        if prefix and any(name.startswith(f"{prefix}.") for name in weights):
            prefix = f"{prefix}."
        self._weights, self._prefix, self._leave, self._convert = weights, prefix, leave, convert
        self._names = Names(weights, [(*v.modules, v.leaf) for v in variables], prefix)
        self._used: dict[str, str] = {}
        self._left: set[str] = set()
        self._missing: list[tuple[Variable, list[str]]] = []
        self._misfits: list[tuple[Variable, Sequence[str], Misfit]] = []
        self._warned: set[str] = set()
        paths = [variable.path for variable in variables]
        # The names in `leave` that are of PyTorch alone.
        self._foreign = [part for part in leave if not self._is_in(part, paths)]
        self._check_leave(variables)
        self._check_convert(paths)

    def _check_leave(self, variables: Sequence[Variable]) -> None:
        names = [name for variable in variables for name in self._all_names(variable)]
        start = len(self._prefix)
        names += [name[start:] for name in self._weights if name.startswith(self._prefix)]
        for part in self._leave:
            if not self._is_in(part, names):
                raise ValueError(
                    f"leave names {part!r}, which is no module of the network, nor of weights "
                    "under the prefix: leave the name out, or give one of theirs."
                )

    def _check_convert(self, paths: Sequence[str]) -> None:
        for pattern in self._convert:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    f"convert has the pattern {pattern!r}, which matches none of the network's "
                    f"variables, for example {paths[0]!r}."
                )

    def value(self, variable: Variable) -> Any:
        """The value of a variable in `weights`, or its own value where there is none."""
        if not variable.is_parameter:
            return variable.value
        names = self._names.find(variable.modules, variable.leaf)
        if self._is_variable_left(variable, names):
            self._left.update(names)
            return variable.value
        if not names:
            expected = self._names.expected(variable.modules, variable.leaf)
            self._missing.append((variable, expected))
            return variable.value
        try:
            return self._filled(variable, names)
        except Misfit as misfit:
            self._misfits.append((variable, names, misfit))
            return variable.value

    def _filled(self, variable: Variable, names: Sequence[str]) -> np.ndarray:
        for name in names:
            if name in self._used:
                message = f"both {self._used[name]} and {variable.path} ask for it"
                raise Misfit("uncertain", message)
            self._used[name] = variable.path
        self._check_mask_scale(variable, names)
        self._check_points(variable, names[0])
        value = self._arranged(variable, names[0], self._put_together(names))
        if not np.issubdtype(value.dtype, np.floating):
            message = f"expected floating point, got {value.dtype}: scale the numbers by convert="
            raise Misfit("misshapen", message)
        return value.astype(variable.value.dtype)

    def _put_together(self, names: Sequence[str]) -> np.ndarray:
        """The channels of one tensor, or of several, one tensor after the other."""
        arrays = [self._weights[name] for name in names]
        if len({array.shape[1:] for array in arrays}) > 1:
            shapes = " and ".join(f"{name} {self._weights[name].shape}" for name in names)
            raise Misfit("misshapen", f"cannot be put together: {shapes}")
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _check_mask_scale(self, variable: Variable, names: Sequence[str]) -> None:
        """Refuses a wrong `mask_scale`: a branch `modulator_conv` makes masks `2 * sigmoid`."""
        if len(names) == 1 or self._conversion(variable) is not None:
            return
        scale = getattr(variable.parent, "mask_scale", None)
        wanted = (
            f"the mask of a layer with {MASK_BRANCH} is 2 * sigmoid(logits): make the layer with"
        )
        if scale is None:
            self._warn(f"{wanted} mask_scale=2.0, which only an NNX model shows")
        elif scale != 2.0:
            raise Misfit(
                "uncertain",
                f"{wanted} mask_scale=2.0, not {scale}; if yours is sigmoid(logits), say so with "
                r'convert={r"offset_conv\.kernel$": convolution, r"offset_conv\.bias$": np.asarray}',
            )

    def _warn(self, message: str) -> None:
        """Says, once, what a layer must be that is not known."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"{message}.", stacklevel=2)

    def _check_points(self, variable: Variable, name: str) -> None:
        """Compares the points of each level with the buffers of RT-DETRv2 and D-FINE.

        Shapes show only the sum of the points.
        """
        module = name.rpartition(".")[0]
        if not module.endswith(_OFFSETS):
            return
        for shares in _POINT_SHARES:
            buffer = f"{module.removesuffix(_OFFSETS)}{shares}"
            if buffer not in self._weights:
                continue
            self._left.add(buffer)
            found = _torch_arrays.points_of_shares(self._weights[buffer])
            points = getattr(variable.parent, "points", None)
            if points is None:
                if len(set(found)) > 1:
                    self._warn(
                        f"{buffer} says points={tuple(found)}, which only an NNX model shows"
                    )
            elif found != ([points] * len(found) if isinstance(points, int) else list(points)):
                wanted = f"make the layer with points={tuple(found)}, as {buffer} says"
                raise Misfit("misshapen", f"{wanted}, not {points}")

    def _conversion(self, variable: Variable) -> Callable[[np.ndarray], np.ndarray] | None:
        """The function in `convert` for a variable, if there is one."""
        matching = (f for pattern, f in self._convert.items() if re.search(pattern, variable.path))
        return next(matching, None)

    def _arranged(self, variable: Variable, name: str, weight: np.ndarray) -> np.ndarray:
        """`weight` in Flax's order of axes."""
        shape, leaf = np.shape(variable.value), variable.leaf
        function = self._conversion(variable)
        if function is not None:
            return _torch_arrays.converted(function, weight, shape)
        if leaf == "kernel" and name.endswith(LEAVES["kernel"]) and len(shape) > 1:
            is_deformable = self._names.is_deformable(variable.modules)
            path = None if is_deformable else variable.modules
            return _torch_arrays.kernel(weight, shape, path, variable.module)
        if leaf == "embedding":
            return _torch_arrays.same_shape(weight, shape)
        return _torch_arrays.same_axes(weight, shape)

    def report(self, *, strict: bool) -> Report:
        """The names of all parameters.

        Raises:
          ValueError: one error that lists everything that is wrong.
        """
        missing = [names for _, names in self._missing]
        report = Report(list(self._used), [names[0] for names in missing], self._unexpected())
        problems = {kind: self._misfits_of(kind) for kind in ("misshapen", "uncertain")}
        if strict or (not report.loaded_keys and missing):
            lines = [" or ".join(names) for names in missing]
            problems = {"missing": lines, "unexpected": report.unexpected_keys, **problems}
        lists = [
            f"{len(lines)} {kind}:\n  " + "\n  ".join(lines)
            for kind, lines in problems.items()
            if lines
        ]
        if lists:
            title = "The parameters do not fit the network."
            raise ValueError("\n".join([title, *lists, *advice(self._outcome())]))
        return report

    def _misfits_of(self, kind: str) -> list[str]:
        found = [(names, misfit) for _, names, misfit in self._misfits if misfit.kind == kind]
        return [f"{' with '.join(names)}: {misfit}" for names, misfit in found]

    def _outcome(self) -> Outcome:
        return Outcome(
            self._weights,
            self._names,
            self._prefix,
            self._used,
            self._unexpected(),
            self._missing,
            self._misfits,
        )

    def _unexpected(self) -> list[str]:
        known = self._left | self._used.keys()
        return sorted(
            name
            for name in self._weights.keys() - known
            if name.startswith(self._prefix) and not self._is_left(name.removeprefix(self._prefix))
        )

    def _all_names(self, variable: Variable) -> list[str]:
        """The names of a variable in Flax and, without the prefix, in `weights`."""
        path = variable.modules, variable.leaf
        names = self._names.find(*path) or self._names.expected(*path)
        return [variable.path, *(name.removeprefix(self._prefix) for name in names)]

    def _is_variable_left(self, variable: Variable, found: Sequence[str]) -> bool:
        """Whether `leave` names a variable as Flax does, or as PyTorch does.

        Of a variable that is not in `weights`, the name in PyTorch is not certain: the name of a
        Flax module names only this module.
        """
        path, *names = self._all_names(variable)
        if self._is_left(path) or (found and any(map(self._is_left, names))):
            return True
        return any(self._is_in(part, names) for part in self._foreign)

    def _is_left(self, name: str) -> bool:
        return any(self._is_left_by(part, name) for part in self._leave)

    def _is_in(self, part: str, names: Collection[str]) -> bool:
        return any(self._is_left_by(part, name) for name in names)

    def _is_left_by(self, part: str, name: str) -> bool:
        """Whether `part` is in `name`, or begins with the prefix and is in the name after it."""
        is_whole = part.startswith(self._prefix) and f"{self._prefix}{name}".startswith(f"{part}.")
        return is_whole or _is_part(part, name)


def _is_part(part: str, name: str) -> bool:
    """Whether the dotted name contains the module or modules `part`."""
    return f".{part}." in f".{name}."
