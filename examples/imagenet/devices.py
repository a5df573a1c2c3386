# SPDX-License-Identifier: MIT
"""All devices of all processes as one mesh: batches are split over it, everything else is whole."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from examples.imagenet.data import Share
from examples.imagenet.errors import OptionError, UserError, lack_of_memory, lack_of_space
from examples.imagenet.settings import Processes

_GOES_ON = "Training goes on from the last checkpoint."


def connect(processes: Processes) -> None:
    """Joins the other processes, where there are others."""
    if jax.distributed.is_initialized():
        return
    if processes.coordinator is None:
        if (processes.num_processes or 1) > 1:
            raise OptionError("--num-processes needs --coordinator, the host:port of process 0.")
        return
    given = (processes.coordinator, processes.num_processes, processes.process_id)
    try:
        jax.distributed.initialize(
            *((None, None, None) if processes.coordinator == "auto" else given),
            heartbeat_timeout_seconds=processes.timeout,
            initialization_timeout=processes.timeout,
            shutdown_timeout_seconds=processes.timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Cannot join the other processes at {processes.coordinator} "
            f"({str(error).splitlines()[0]}): start all of them within {processes.timeout} s with "
            "the same --coordinator and --num-processes, and --process-id 0, 1, ..."
        ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process when it fails, or when another one does, so that none waits for it."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr, flush=True)
        os._exit(1)  # Every other way out waits for the other processes, which wait for this one.


def _in_words(error: BaseException) -> str:
    here = f"Process {jax.process_index()}"
    if isinstance(error, UserError):
        return f"{here}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return f"{here} was interrupted: start all again. {_GOES_ON}"
    if message := lack_of_space(error) or lack_of_memory(error):
        return f"{here}: {message}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        reason = str(error).splitlines()[0]
        return f"{here} lost another one, or a device ({reason}): start all again. {_GOES_ON}"
    return "".join(traceback.format_exception(error))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays go."""

    batch: NamedSharding
    whole: NamedSharding

    @property
    def share(self) -> Share:
        """The part of every batch that this process reads."""
        return Share(jax.process_index(), jax.process_count())

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's share of a batch, as its part of the whole batch on all devices."""
        return {
            name: jax.make_array_from_process_local_data(self.batch, array)
            for name, array in batch.items()
        }


def place(
    batch_size: int, parts: int = 1, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """The placement on `devices`, by default all, of batches computed in so many `parts`."""
    devices = jax.devices() if devices is None else devices
    divisor = len(devices) * parts
    if batch_size % divisor:
        over = f"{len(devices)} devices" + (f" times {parts} parts" if parts > 1 else "")
        raise UserError(
            f"A batch of {batch_size} does not divide over {over}: make --batch-size a multiple of "
            f"{divisor}, such as {max(1, round(batch_size / divisor)) * divisor}."
        )
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Placement(
        *(NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    )


def processor() -> str:
    """The name of this machine's processor."""
    try:
        information = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # Not Linux.
        information = ""
    found = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    return found[1] if found else platform.processor()


def one_device() -> Placement:
    """The placement of a few images on the first device of this process."""
    return place(1, devices=jax.local_devices()[:1])
