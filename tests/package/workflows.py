# SPDX-License-Identifier: MIT
"""Lists the commands of the workflows, or runs those that name one of the words.

python tests/package/workflows.py
python tests/package/workflows.py lint kernels "VERSION=0.10.2"
"""

import itertools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import yaml

ROOT = pathlib.Path(__file__).parents[2]


def commands() -> dict[str, None]:
    """The commands in order, each once, with the values of the matrices written out."""
    found = {}
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step, values in itertools.product(job["steps"], matrix(job)):
                if "run" in step:
                    found[written_out(step, values)] = None
    return found


def matrix(job: dict) -> Iterator[dict[str, str]]:
    """The values of each run of a job."""
    axes = job.get("strategy", {}).get("matrix", {})
    if "include" in axes:
        return iter(axes["include"])
    values = itertools.product(*axes.values())
    return (dict(zip(axes, chosen, strict=True)) for chosen in values)


def written_out(step: dict, values: dict[str, str]) -> str:
    """The command of a step, with the values in the place of expressions and variables."""
    replace = lambda text: re.sub(
        r"\$\{\{ matrix\.(\w+) \}\}", lambda found: str(values[found[1]]), text
    )
    command = replace(step["run"])
    for name, value in step.get("env", {}).items():
        command = command.replace(f'"${name}"', replace(value))
    return command


def main() -> int:
    words, status = sys.argv[1:], 0
    for command in commands():
        if not words:
            print(command)
        elif any(word in command for word in words):
            done = subprocess.run(command, shell=True, cwd=ROOT)
            print(f"{command}: exit status {done.returncode}", flush=True)
            status |= done.returncode
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
