# SPDX-License-Identifier: MIT
"""Values of JSON in one array. Each worker process holds a copy, and Python's objects are large."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class Packed:
    """Values of JSON as text; a value becomes objects when somebody asks for the value."""

    def __init__(self, values: Iterable[Any]):
        texts = [json.dumps(value, separators=(",", ":")).encode() for value in values]
        self._text = np.frombuffer(b"".join(texts), np.uint8)
        self._edges = np.cumsum([0, *map(len, texts)])

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._edges[index], self._edges[index + 1]
        return json.loads(self._text[start:end].tobytes())

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))
