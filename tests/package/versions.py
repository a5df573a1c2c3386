# SPDX-License-Identifier: MIT
"""Runs the suite with other versions of JAX, on the kernels of a wheel; a line for each says how it went.

    python tests/package/versions.py                       # oldest and 0.10.2, with this Python
    python tests/package/versions.py newest -- -k native   # what follows -- goes to pytest
    python tests/package/versions.py newest --debian build/trixie
    python tests/package/versions.py oldest --files 'package/*' 'native/*'

Newer releases of JAX need a newer Python than some machines have. `--debian` installs Debian 13, with
its Python 3.13, into a folder (debootstrap, as root), and runs there.
"""

import argparse
import collections
import multiprocessing.pool
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[2]
VERSIONS = {"oldest": "==0.8.1", "0.10.2": "==0.10.2", "newest": ""}
# What the suite reads. The package itself comes from the wheel.
FOLDERS = (
    ".github",
    "benchmarks",
    "common",
    "cpu",
    "cuda",
    "docs",
    "examples",
    "packaging",
    "tests",
)
FILES = ("*.md", "*.txt", "*.toml", "*.yml", "LICENSE", "Makefile")
DEBIAN = "trixie"
DEBIAN_PACKAGES = "python3,python3-venv,python3-dev,ca-certificates,g++"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=["oldest", "0.10.2"], metavar="VERSION")
    parser.add_argument("--debian", type=pathlib.Path, help="folder of a Debian to run in")
    parser.add_argument("--files", nargs="+", default=["**/*"], help="patterns within tests/")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "versions")
    own, pytest_options = split(sys.argv[1:])
    arguments = parser.parse_args(own)
    if unknown := set(arguments.versions) - set(VERSIONS):
        parser.error(f"VERSION must be of {', '.join(VERSIONS)}, got {', '.join(unknown)}")
    if not selected(ROOT, arguments.files):
        parser.error(f"--files: no test in tests/ matches {', '.join(arguments.files)}")
    if arguments.debian:
        options = ["--files", *arguments.files, "--", *pytest_options]
        return run_in_debian(arguments.debian.resolve(), [*arguments.versions, *options])
    work = arguments.work.absolute()
    wheel = build_wheel(work)
    sources = unpack(wheel, work / "sources")
    lines, failures = [], 0
    for version in arguments.versions:
        environment = prepare(version, wheel, work)
        log = work / f"{version}.log"
        outcomes = suite(environment, sources, arguments.files, log, pytest_options)
        failures += sum(outcomes[bad] for bad in ("failed", "error", "crashed"))
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        lines.append(f"{versions_of(environment)}: {counts} (see {log})")
    print("\n".join(lines))
    return int(failures > 0)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is before `--`, and what is after it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def build_wheel(work: pathlib.Path) -> pathlib.Path:
    """The wheel for this Python, built once for all the environments."""
    environment = make_environment(work / "build", "build")
    run(environment, "-m", "build", "--wheel", "--outdir", str(work / "dist"), str(ROOT))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return max((work / "dist").glob(f"*-{tag}-*.whl"), key=os.path.getmtime)


def unpack(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A checkout whose package, with its kernels, is that of the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        shutil.copy(path, folder)
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def prepare(version: str, wheel: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    """An environment with the wheel, what its tests need, and that version of JAX."""
    package = f"jax-dcn[parity,test] @ {wheel.resolve().as_uri()}"
    jax = VERSIONS[version]
    return make_environment(work / version, package, f"jax{jax}", f"jaxlib{jax}")


def selected(sources: pathlib.Path, patterns: list[str]) -> list[pathlib.Path]:
    """The tests' files that match a pattern; those in devices/eight are run by another file."""
    found = {path for pattern in patterns for path in (sources / "tests").glob(pattern)}
    return sorted(p for p in found if p.match("test_*.py") and "eight" not in p.parts)


def suite(
    environment: pathlib.Path,
    sources: pathlib.Path,
    patterns: list[str],
    log: pathlib.Path,
    options: list[str],
) -> collections.Counter[str]:
    """Numbers of tests by outcome; a process for each file, so that none leans on another."""
    outcomes = collections.Counter({"passed": 0, "failed": 0, "skipped": 0})
    command = [environment / "bin" / "python", "-m", "pytest", "-q", *options]

    def test(path: pathlib.Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, path], cwd=sources, stdout=subprocess.PIPE, text=True)

    paths = selected(sources, patterns)
    with log.open("w") as written, multiprocessing.pool.ThreadPool() as pool:
        for path, done in zip(paths, pool.imap(test, paths), strict=True):
            last = done.stdout.strip().splitlines()[-1:]
            print(path.name, *last, flush=True)
            written.write(done.stdout)
            for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", *last or [""]):
                outcomes[outcome] += int(count)
            # Of pytest's statuses, 0 is success, 1 a failure and 5 that the options left no test.
            outcomes["crashed"] += done.returncode not in (0, 1, 5)
    return +outcomes


def versions_of(environment: pathlib.Path) -> str:
    """Which JAX and Python the environment has."""
    program = (
        "import jax, platform as p; print('JAX', jax.__version__, '/ Python', p.python_version())"
    )
    command = [environment / "bin" / "python", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_environment(folder: pathlib.Path, *requirements: str) -> pathlib.Path:
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    run(folder, "-m", "pip", "install", "--quiet", "--upgrade", *requirements)
    return folder


def run(environment: pathlib.Path, *arguments: str) -> None:
    subprocess.run([environment / "bin" / "python", *arguments], check=True)


def run_in_debian(folder: pathlib.Path, arguments: list[str]) -> int:
    """Runs this script inside the Debian in `folder`, which is installed if it is not there."""
    if not (folder / "usr" / "bin" / "python3").exists():
        include = f"--include={DEBIAN_PACKAGES}"
        if shutil.which("debootstrap") is None:
            sys.exit(
                "--debian needs debootstrap: apt-get install debootstrap, then run it as root."
            )
        command = ["debootstrap", "--variant=minbase", include, DEBIAN, folder]
        subprocess.run(command, check=True)
    # This machine's way to reach package indexes: names, certificates, pip's settings.
    for name in ("resolv.conf", "hosts", "pip.conf", "ssl/certs/ca-certificates.crt"):
        source = pathlib.Path("/etc", name)
        if source.exists():
            shutil.copy(source, folder / "etc" / name)
    inside = "mount -t proc proc proc && mkdir -p project && mount --bind {root} project"
    script = f'{inside} && exec chroot . python3 /project/{{script}} --work /versions "$@"'
    script = script.format(root=ROOT, script=pathlib.Path(__file__).relative_to(ROOT))
    command = ["unshare", "--mount", "sh", "-c", f"cd {folder} && {script}", "sh"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run([*command, *arguments], env=environment | pip)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
