import subprocess
import sys
from pathlib import Path

import pytest

from cli.checkout import ROOT, require_checkout
from cli.errors import CommandError


def test_a_checkout_makes_the_benchmarks_importable_where_only_the_command_is(tmp_path):
    """As in an editable install, which maps the packages of the wheel alone."""
    (tmp_path / "cli").symlink_to(ROOT / "cli")
    path = [str(tmp_path), *(folder for folder in sys.path if folder and Path(folder).resolve() != ROOT)]
    code = f"import sys; sys.path[:] = {path!r}; from cli.checkout import require_checkout; require_checkout(); import benchmarks"
    code += "; print(benchmarks.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "benchmarks" / "__init__.py")


def test_without_a_checkout_a_sentence_says_what_is_needed(tmp_path):
    with pytest.raises(CommandError, match="this command needs a checkout of the repository"):
        require_checkout(tmp_path)
