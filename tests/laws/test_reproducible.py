# SPDX-License-Identifier: MIT
"""Results keep their bits over runs and numbers of threads."""

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax

from tests.laws.operator import Operator
from tests.laws.table import OPERATORS, every_operator

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json
from tests.laws.test_reproducible import digest
from tests.laws.table import OPERATORS
print(json.dumps({operator.name: digest(operator) for operator in OPERATORS}))
"""


def digest(operator: Operator) -> str:
    """A hash of all results of the kernels, on every case."""
    digest = hashlib.sha256()
    for case in (*operator.cases, operator.busy):
        run = jax.jit(operator.derivatives(case.function("native")))
        arrays, dots = (case.arrays("float32", seed) for seed in (0, 5))
        for leaf in jax.tree.leaves(run(arrays, dots, case.cotangent("float32"))):
            digest.update(leaf.tobytes())
    return digest.hexdigest()


@functools.cache
def digests(threads: int) -> dict[str, str]:
    """The hashes of all operators, from another process."""
    environment = os.environ | {"NPROC": str(threads)}  # The size of XLA's thread pool.
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {operator.name for operator in OPERATORS}
    return found


@every_operator
def test_bits_depend_neither_on_the_run_nor_on_the_number_of_threads(operator):
    one, *others = (digests(threads)[operator.name] for threads in (1, 2, 7))
    assert others == [one, one]
