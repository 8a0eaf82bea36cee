"""What processes may load, seen in a fresh interpreter."""

import subprocess
import sys

WITHOUT_TORCH = (
    "api.app, worker.app, worker.reconciler.reconciler, cli.main, embedded.service, dragqueue_client, jobs.spec.validation, "
    "migrations.upgrade, engine.atomic_write, engine.checkpoints.layouts, engine.checkpoints.canonical"
)


EVERY_COMMAND = "[import_module(module.name) for module in walk_packages(cli.__path__, 'cli.')]"


def test_what_needs_no_network_loads_no_torch():
    code = f"import sys, {WITHOUT_TORCH}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_command_imports_the_benchmarks_before_it_runs():
    """They are in a checkout alone."""
    code = f"import cli, sys; from importlib import import_module; from pkgutil import walk_packages; {EVERY_COMMAND}; "
    code += "sys.exit('benchmarks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
