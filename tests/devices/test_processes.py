# SPDX-License-Identifier: MIT
"""Several processes that each have several devices train as one process with one device does."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Arguments: address of process 0, number of processes, number of this one, devices in each.
TRAIN = """
import json, os, sys
import jax, numpy as np
sys.path.insert(0, ".")
address, processes, process, devices = sys.argv[1], *map(int, sys.argv[2:])
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", devices)
if processes > 1:
    jax.distributed.initialize(
        address, processes, process, heartbeat_timeout_seconds=15, shutdown_timeout_seconds=15
    )
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tests.deform_conv2d.cases import Case
from jax_dcn import deform_conv2d

case = Case("step", 8, (5, 6), 4, 3, kernel=(2, 3), padding="SAME")
mesh = jax.make_mesh((processes * devices,), ("data",), (AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

def place(array, sharding):
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

x, kernel, offset, mask, bias = case.arrays("float64")
target = place(case.cotangent("float64"), split)
data = place(x, split), place(mask, split), target
parameters = place(kernel, whole), place(bias, whole), place(offset, split)

@jax.jit
def step(parameters, x, mask, target):
    def loss(parameters):
        kernel, bias, offset = parameters
        return ((deform_conv2d(x, kernel, offset, mask, bias, padding="SAME") - target) ** 2).mean()
    value, gradients = jax.value_and_grad(loss)(parameters)
    return value, jax.tree.map(lambda p, g: p - 0.3 * g, parameters, gradients)

losses = []
for index in range(4):
    value, parameters = step(parameters, *data)
    losses.append(float(value))
    if index == 1 and os.environ.get("DIES") == str(process):
        os._exit(9)
print(json.dumps(losses))
"""


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def train(processes: int, devices: int, **environment: str) -> list[subprocess.CompletedProcess]:
    address = free_address()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, address, str(processes), str(process), str(devices)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def losses_of_one() -> list[float]:
    (run,) = train(1, 1)
    assert run.returncode == 0, run.stderr
    losses = json.loads(run.stdout.splitlines()[-1])
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (4, 2)])
def test_losses_of_several_processes_equal_those_of_one(processes, devices, losses_of_one):
    for run in train(processes, devices):
        assert run.returncode == 0, run.stderr
        losses = json.loads(run.stdout.splitlines()[-1])
        np.testing.assert_allclose(losses, losses_of_one, rtol=1e-12)


def test_processes_end_with_a_message_when_one_dies():
    survivor, dead = train(2, 2, DIES="1")
    assert dead.returncode == 9
    assert survivor.returncode != 0
    assert re.search("another task died|[Cc]onnection closed|Gloo", survivor.stderr)
