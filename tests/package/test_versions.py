# SPDX-License-Identifier: MIT
"""The command that runs the suite with other versions of JAX says in a sentence what it cannot do."""

import pathlib
import subprocess
import sys

VERSIONS = pathlib.Path(__file__).with_name("versions.py")


def run(*arguments: str, path: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, VERSIONS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path})


def test_an_unknown_version_is_refused_before_work_begins(tmp_path):
    done = run("bogus", "--work", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith("VERSION must be of oldest, 0.10.2, newest, got bogus\n")
    assert not list(tmp_path.iterdir())


def test_a_pattern_of_no_test_is_refused_before_work_begins(tmp_path):
    done = run("oldest", "--work", str(tmp_path), "--files", "nowhere/*")
    assert done.returncode == 2
    assert done.stderr.endswith("--files: no test in tests/ matches nowhere/*\n")
    assert not list(tmp_path.iterdir())


def test_a_machine_without_debootstrap_is_told_what_to_install(tmp_path):
    done = run("newest", "--debian", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("--debian needs debootstrap: apt-get install debootstrap")
