"""What processes may load, seen in a fresh interpreter."""

import subprocess
import sys

WITHOUT_TORCH = (
    "api.app, worker.app, worker.reconciler.reconciler, cli.main, embedded.service, dragqueue_client, jobs.spec.validation, "
    "migrations.upgrade, engine.atomic_write, engine.defaults, engine.checkpoints.layouts, engine.checkpoints.canonical"
)


def test_what_needs_no_network_loads_no_torch():
    code = f"import sys, {WITHOUT_TORCH}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
