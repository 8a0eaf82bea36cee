"""How benchmarks start programs of this checkout: by module name, whatever is installed and wherever they run."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of the checkout; -P keeps the working directory out of its imports."""
    return [sys.executable, "-P", "-m", module, *arguments]


def checkout_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment with the checkout on the import path: an installed service has no benchmarks."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
