# SPDX-License-Identifier: MIT
"""Runs the suite against other versions of JAX, with the package as users install it: from a wheel.

    python tests/packaging/versions.py                       # oldest and 0.10.2, with this Python
    python tests/packaging/versions.py newest -- -k native   # what follows -- goes to pytest
    python tests/packaging/versions.py newest --debian build/trixie

Newer releases of JAX need a newer Python than some machines have. `--debian` installs Debian 13, with
its Python 3.13, into a folder (debootstrap, as root), and runs there.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
VERSIONS = {"oldest": "==0.8.1", "0.10.2": "==0.10.2", "newest": ""}
# What the suite reads, without the package: it must test the one that is installed.
READS = ("README.md", "docs", "examples", "benchmarks", "tests", "common", "cpu", "cuda")
DEBIAN = "trixie"
DEBIAN_PACKAGES = "python3,python3-venv,python3-dev,ca-certificates,g++"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=["oldest", "0.10.2"], metavar="VERSION")
    parser.add_argument("--debian", type=pathlib.Path, help="folder of a Debian to run in")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "versions")
    own, pytest_options = split(sys.argv[1:])
    arguments = parser.parse_args(own)
    if unknown := set(arguments.versions) - set(VERSIONS):
        parser.error(f"VERSION must be of {', '.join(VERSIONS)}, got {', '.join(unknown)}")
    if arguments.debian:
        return run_in_debian(arguments.debian.resolve(), arguments.versions, pytest_options)
    wheel = build_wheel(arguments.work)
    failed = [v for v in arguments.versions if not suite(v, wheel, arguments.work, pytest_options)]
    print(f"failed with JAX: {', '.join(failed)}" if failed else "passed with every JAX")
    return bool(failed)


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


def suite(version: str, wheel: pathlib.Path, work: pathlib.Path, options: list[str]) -> bool:
    """Whether the suite passes with that version of JAX."""
    jax = VERSIONS[version]
    extras = "[parity,test]"
    environment = make_environment(
        work / version, f"jax-dcn{extras} @ {wheel.resolve().as_uri()}", f"jax{jax}", f"jaxlib{jax}"
    )
    sources = work / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    for name in READS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        sources.mkdir(exist_ok=True)
        copy(ROOT / name, sources / name)
    shutil.copy(ROOT / "pyproject.toml", sources)
    command = [environment / "bin" / "python", "-m", "pytest", "--numprocesses", "auto", *options]
    return subprocess.run(command, cwd=sources).returncode == 0


def make_environment(folder: pathlib.Path, *requirements: str) -> pathlib.Path:
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    run(folder, "-m", "pip", "install", "--quiet", "--upgrade", *requirements)
    return folder


def run(environment: pathlib.Path, *arguments: str) -> None:
    subprocess.run([environment / "bin" / "python", *arguments], check=True)


def run_in_debian(folder: pathlib.Path, versions: list[str], options: list[str]) -> int:
    """Runs this script inside the Debian in `folder`, which is installed if it is not there."""
    if not (folder / "usr" / "bin" / "python3").exists():
        include = f"--include={DEBIAN_PACKAGES}"
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
    done = subprocess.run([*command, *versions, "--", *options], env=environment | pip)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
