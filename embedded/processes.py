"""Child processes that never outlive us, even when we are killed with -9."""

import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from embedded.errors import ServerFailed

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Child:
    """A running program, its name for people, its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals
    again: Callable[[], "Child"]  # starts the same program once more

    def check(self) -> None:
        """Raises ServerFailed when it has ended."""
        if self.process.poll() is not None:
            raise ServerFailed(f"{self.name} ended with exit code {self.process.returncode}; its log is {self.log}")

    def wait_until(self, ready: Callable[[], bool], limit_s: float) -> None:
        """Raises ServerFailed when it ends, or is not ready in time; then it is stopped."""
        until = time.monotonic() + limit_s
        while not ready():
            self.check()
            if time.monotonic() > until:
                self.stop()
                raise ServerFailed(f"{self.name} was not ready after {limit_s:g} s; its log is {self.log}")
            time.sleep(0.02)

    def stop(self, limit_s: float = 10.0) -> None:
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(
    name: str, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], user: int | None = None,
    stop_signal: signal.Signals = signal.SIGTERM, death_signal: signal.Signals = signal.SIGKILL,
) -> Child:  # fmt: skip
    """Start a program with its output in a log.

    The kernel sends it death_signal when the thread that called this ends, so call it from the main thread.

    Args:
        user: numeric id to run as, with the group of the same number; default our own.
    """

    def die_with_parent() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, death_signal)

    identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environment),
                preexec_fn=die_with_parent, start_new_session=True, **identity,
            )  # type: ignore[call-overload]  # fmt: skip
    except OSError as error:
        log.write_text(f"{error}\n")
        raise ServerFailed(f"{name} cannot be started: {error}; its log is {log}") from error
    options = {"log": log, "environment": environment, "user": user, "stop_signal": stop_signal, "death_signal": death_signal}
    return Child(name, process, log, stop_signal, partial(start, name, command, **options))  # type: ignore[arg-type]
