# SPDX-License-Identifier: MIT
"""The workflows call commands of the Makefile, and hold no logic."""

import re

import pytest

workflows = pytest.importorskip("tests.package.workflows")  # which needs PyYAML
commands = workflows.commands
MAKEFILE = (workflows.ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w -]+):", MAKEFILE, re.MULTILINE))
TARGETS = {target for targets in TARGETS for target in targets.split()}


def test_every_command_makes_targets_of_the_makefile():
    assert len(commands()) > 5
    for command in commands():
        program, *arguments = command.split()
        assert program == "make", command
        targets = [argument for argument in arguments if "=" not in argument]
        assert targets and set(targets) <= TARGETS, command


def test_every_version_of_jax_is_one_that_the_command_knows():
    versions = [c.split("VERSION=")[1] for c in commands() if "VERSION=" in c]
    assert sorted(versions) == ["0.10.2", "newest", "oldest"]
