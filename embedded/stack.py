"""The local stack: the servers that nobody else provides, with the database migrated and the bucket made."""

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
from embedded.servers import Places, start_postgres, start_s3, start_valkey
from jobs.environment import ENV_PREFIX, read_settings
from jobs.settings import Settings


@dataclass
class Stack:
    """Running servers and the environment in which every process of ours finds them."""

    environment: dict[str, str]
    logs: Path
    children: list[Child] = field(default_factory=list)
    durable: bool = False  # whether its data outlives it

    def check(self) -> None:
        for child in self.children:
            child.check()

    def restart(self, name: str) -> None:
        """Start a server once more that has ended: with the same data, at the same address. Returns before it is ready."""
        self.children = [child.again() if child.name == name else child for child in self.children]

    def settings(self) -> Settings:
        """The settings as a process with this environment would read them. Raises SettingsInvalid."""
        return read_settings(self.environment)


@contextmanager
def local_stack(state: Path | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[Stack]:
    """Start the servers whose URL is not in the environment, and stop them afterwards.

    Args:
        state: folder that keeps their data; None: a temporary one, with servers that need not survive a power cut.

    Raises:
        StackError: a server cannot start; the message names its log.
    """
    with ExitStack() as cleanup:
        run = Path(tempfile.mkdtemp(prefix="dragqueue-"))  # short: a socket's path has at most 107 bytes
        run.chmod(0o711)
        cleanup.push(partial(remove_run, run))
        data = run if state is None else cleanup.enter_context(locked_folder(state))
        logs = data / "logs"
        logs.mkdir(exist_ok=True)
        stack = Stack(dict(environment), logs, durable=state is not None)
        cleanup.callback(stop, stack)
        start_missing(stack, Places(data=data, run=run, logs=logs, durable=state is not None))
        yield stack


def remove_run(run: Path, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """Remove a run folder; the logs stay when a server has failed, for its message names one."""
    for path in run.iterdir():
        if path.name != "logs" or not isinstance(error, ServerFailed):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not any(run.iterdir()):
        run.rmdir()


def start_missing(stack: Stack, places: Places) -> None:
    given = stack.environment
    given.setdefault(f"{ENV_PREFIX}ENVIRONMENT", "development")
    if f"{ENV_PREFIX}DATABASE_URL" not in given:
        child, given[f"{ENV_PREFIX}DATABASE_URL"] = start_postgres(places)
        stack.children.append(child)
    if f"{ENV_PREFIX}REDIS_URL" not in given:
        child, given[f"{ENV_PREFIX}REDIS_URL"] = start_valkey(places)
        stack.children.append(child)
    if f"{ENV_PREFIX}S3_ENDPOINT" not in given:
        child, values = start_s3(places)
        given.update({f"{ENV_PREFIX}{name}": value for name, value in values.items()})
        stack.children.append(child)


def stop(stack: Stack) -> None:
    for child in reversed(stack.children):
        child.stop()


def default_state() -> Path:
    """Where `dragqueue up` keeps its data: root's home is closed to PostgreSQL, which must not run as root."""
    if os.geteuid() == 0:
        return Path("/var/lib/dragqueue")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dragqueue"


def stop_on_signals() -> None:
    """Let SIGINT and SIGTERM both unwind like Ctrl-C, also where a shell started us with SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@contextmanager
def locked_folder(state: Path) -> Iterator[Path]:
    """The folder, made if missing and held against a second stack."""
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
