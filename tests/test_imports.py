"""What processes may load, seen in fresh interpreters."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "api.app",
        "worker.app",
        "worker.reconciler",
        "cli.main",
        "cli.service",
        "cli.client",
        "jobs.submission",
        "migrations.upgrade",
    ],
)
def test_only_engine_and_its_child_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
