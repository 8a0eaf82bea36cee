"""What needs the source tree: benchmarks/ measures this project and is in no wheel."""

import sys
from importlib.util import find_spec
from pathlib import Path

from cli.errors import CommandError

ROOT = Path(__file__).resolve().parent.parent  # of the source tree, where this file lies in one


def require_checkout(root: Path = ROOT) -> None:
    """Make the package `benchmarks` importable.

    Raises:
        CommandError: this is an installed wheel, which leaves the benchmarks out.
    """
    package = root / "benchmarks" / "__init__.py"
    if not package.is_file() or not (root / "pyproject.toml").is_file():
        raise CommandError("this command needs a checkout of the repository: an installed dragqueue leaves benchmarks/ out")
    if find_spec("benchmarks") is None:
        sys.path.append(str(root))  # an editable install maps only the packages of the wheel
