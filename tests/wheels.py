"""Wheels of the two distributions, and fresh environments to install them in."""

import importlib.metadata
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import fastapi
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
DEPENDENCIES = Path(fastapi.__file__).parent.parent  # the site-packages of the environment that runs the tests
LEFT_BY_TOOLS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "docs", "runs", "demo-out")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a copy of a source tree, because a build leaves files in the tree."""
    shutil.copytree(source, folder / "source", ignore=LEFT_BY_TOOLS)
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "source"]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, *wheels: Path) -> tuple[Path, Path]:
    """Make an environment that holds the wheels alone; return its bin folder and its site-packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", *wheels], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    return python.parent, packages


def copy_dependencies(name: str, packages: Path) -> None:
    """Copy into an environment what an installed distribution declares to need, and what that needs in turn."""
    for needed in needed_by(importlib.metadata.PathDistribution(next(packages.glob(f"{name}-*.dist-info"))), set()):
        for file in needed.files or ():
            if ".." not in file.parts:  # commands lie outside site-packages
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(needed.locate_file(file), target)


def needed_by(distribution: importlib.metadata.Distribution, known: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """Yield each distribution that one needs, directly or not, once."""
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.name not in known and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            known.add(requirement.name)
            needed = importlib.metadata.distribution(requirement.name)
            yield needed
            yield from needed_by(needed, known)
