# SPDX-License-Identifier: MIT
"""How long a function keeps the GPU busy, from the profiler's record of what ran there."""

import pathlib
import tempfile
from collections.abc import Callable, Iterable

import jax


def seconds_on_device(function: Callable[[], object]) -> float | None:
    """The time in which a kernel or a copy of `function` ran on a GPU; `None` without any.

    What runs at the same time on several streams counts once, and waiting for the host does not.
    The kernels of other libraries in this process are recorded, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (record,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return busy_seconds(jax.profiler.ProfileData.from_file(str(record)))


def busy_seconds(profile: jax.profiler.ProfileData) -> float | None:
    intervals = [
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")  # the other lines tell the same by operation and module
        for event in line.events
    ]
    return 1e-9 * covered(intervals) if intervals else None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
