"""Child processes that never outlive this one, even when it is killed with SIGKILL."""

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
    """A program that was started, and what is needed to stop it and to start it again."""

    name: str  # for people
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals
    start_again: Callable[[], "Child"]  # starts the same program with the same arguments

    def check(self) -> None:
        """Raise ServerFailed if the process has ended."""
        if self.process.poll() is not None:
            raise ServerFailed(f"{self.name} ended with exit code {self.process.returncode}; its log is {self.log}")

    def wait_until(self, ready: Callable[[], bool], limit_s: float) -> None:
        """Return once ready() is true.

        Raises:
            ServerFailed: the process ended, or was not ready in time and was stopped.
        """
        deadline = time.monotonic() + limit_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                self.stop()
                raise ServerFailed(f"{self.name} was not ready after {limit_s:g} s; its log is {self.log}")
            time.sleep(0.02)

    def stop(self, limit_s: float = 10.0) -> None:
        """Send the stop signal and wait for the end; kill the process if it takes longer."""
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

    Args:
        user: the numeric id to run as, with the group of the same number; None keeps this process's.
        death_signal: what the kernel sends when the thread that called this ends; so call it from the main thread.

    Raises:
        ServerFailed: the program cannot be started.
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
