"""The worker program of `dragqueue bench scale`: a real worker with a sleeping engine.

`python -m benchmarks.scale_worker NAME`, with settings from the environment. It is a module of its own so that no module loads
twice, as itself and as __main__.
"""

import os
import sys
from typing import TYPE_CHECKING

from jobs.environment import read_settings
from jobs.settings import Settings
from worker.app import main as serve
from worker.execution.drain import Drain

if TYPE_CHECKING:
    from worker.execution.runner import Runner


def make_sleeping_runner(settings: Settings, drain: Drain) -> "Runner":
    """Make the runner in the worker's child: the import brings PyTorch, which the parent never loads."""
    from benchmarks.sleeping_runner import SleepingRunner

    return SleepingRunner.from_settings(settings, drain)


if __name__ == "__main__":
    serve(read_settings(os.environ), sys.argv[1], make_sleeping_runner)
