"""The local stack: the private servers whose URLs the environment does not give."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from embedded.errors import ServerFailed, StackError
from embedded.processes import Child
from embedded.servers import ServerFolders, start_postgres, start_s3, start_valkey
from jobs.environment import ENV_PREFIX, read_settings
from jobs.settings import Settings


@dataclass
class Stack:
    """Running servers, and the environment with which the service's processes find them."""

    environment: dict[str, str]
    logs: Path
    children: list[Child] = field(default_factory=list)
    durable: bool = False  # whether the data outlives the stack

    def add(self, child: Child) -> None:
        """Add a process to those that are checked, and stopped with the stack."""
        self.children.append(child)

    def check(self) -> None:
        """Raise ServerFailed if a process has ended."""
        for child in self.children:
            child.check()

    def restart(self, name: str) -> None:
        """Start an ended server anew, with the same data and address; return before it is ready."""
        self.children = [child.start_again() if child.name == name else child for child in self.children]

    def settings(self) -> Settings:
        """Return the settings that a process with this environment reads.

        Raises:
            SettingsInvalid: a variable is wrong.
        """
        return read_settings(self.environment)


@contextmanager
def local_stack(state: Path | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[Stack]:
    """Start the servers whose URL is not in the environment; stop them afterwards.

    Args:
        state: the folder that keeps the data; None takes a temporary one, with servers that need not survive a power cut.

    Raises:
        StackError: the folder cannot be used, or a server cannot start.
    """
    with ExitStack() as cleanup:
        run = Path(tempfile.mkdtemp(prefix="dragqueue-"))  # short: a socket's path has at most 107 bytes
        run.chmod(0o711)
        cleanup.push(partial(remove_run_folder, run))
        data = run if state is None else cleanup.enter_context(locked_folder(state))
        logs = data / "logs"
        logs.mkdir(exist_ok=True)
        stack = Stack(dict(environment), logs, durable=state is not None)
        cleanup.callback(stop, stack)
        start_missing(stack, ServerFolders(data=data, run=run, logs=logs, durable=state is not None))
        yield stack


def remove_run_folder(
    run: Path, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Remove a run folder; keep the logs if a server has failed, because the message names one."""
    for path in run.iterdir():
        if path.name != "logs" or not isinstance(error, ServerFailed):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not any(run.iterdir()):
        run.rmdir()


def start_missing(stack: Stack, folders: ServerFolders) -> None:
    """Start the servers whose URL is not in the stack's environment, and add their URLs to it."""
    given = stack.environment
    given.setdefault(f"{ENV_PREFIX}ENVIRONMENT", "development")
    if f"{ENV_PREFIX}DATABASE_URL" not in given:
        child, given[f"{ENV_PREFIX}DATABASE_URL"] = start_postgres(folders)
        stack.add(child)
    if f"{ENV_PREFIX}REDIS_URL" not in given:
        child, given[f"{ENV_PREFIX}REDIS_URL"] = start_valkey(folders)
        stack.add(child)
    if f"{ENV_PREFIX}S3_ENDPOINT" not in given:
        child, values = start_s3(folders)
        given.update({f"{ENV_PREFIX}{name}": value for name, value in values.items()})
        stack.add(child)


def stop(stack: Stack) -> None:
    """Stop every process, the last one first."""
    for child in reversed(stack.children):
        child.stop()


def default_state() -> Path:
    """Return the folder where `dragqueue up` keeps its data: not in root's home, which is closed to PostgreSQL's user."""
    if os.geteuid() == 0:
        return Path("/var/lib/dragqueue")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dragqueue"


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, even if a shell started this process with SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@contextmanager
def locked_folder(state: Path) -> Iterator[Path]:
    """Hold a state folder against a second stack; create it if it is missing."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("w")
    except OSError as error:
        raise StackError(f"the state folder {state} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"another dragqueue uses {state}: stop it or choose another --state") from error
        yield state.resolve()
