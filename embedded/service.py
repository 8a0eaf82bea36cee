"""The service on this machine: API, workers and reconciler as processes, on servers that are prepared."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError

from embedded.errors import StackError
from embedded.keys import local_key
from embedded.processes import Child, start
from embedded.servers import free_port, speaks_http
from embedded.stack import Stack
from jobs.errors import StorageUnavailable
from jobs.settings import Settings
from jobs.storage.objects import Storage

START_LIMIT_S = 60.0
GPU_LIMIT_S = 30.0
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # with one arena of glibc's allocator per thread a worker's memory grows for hours
    "THP_MEM_ALLOC_ENABLE": "1",  # huge pages: torch's large tensors come and go, and 16 MB of small pages fault 4,096 times
    "GOMP_SPINCOUNT": "10000",  # on shared cores threads that wait 300,000 spins for each other, the default, cost half the time
}


def prepare(settings: Settings) -> None:
    """Migrate the database and create the bucket.

    Raises:
        StackError: one of the servers does not answer.
    """
    from migrations.upgrade import upgrade

    try:
        upgrade(settings.database_url)
        Storage.from_settings(settings).ensure_bucket()
    except (OperationalError, StorageUnavailable) as error:
        raise StackError(f"the service cannot be prepared: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Service:
    """The address of a running service, and a key that may do everything."""

    url: str
    key: str


@contextmanager
def running_service(stack: Stack, *, workers: int = 1, host: str = "127.0.0.1", port: int = 0) -> Iterator[Service]:
    """Run API, workers and reconciler on the stack; yield once the API answers.

    Args:
        port: 0 takes a free one.

    Raises:
        StackError: the port is taken, or a process ends.
    """
    prepare(stack.settings())
    port = port or free_port()
    url = f"http://{host}:{port}"
    if speaks_http(f"{url}/healthz"):
        raise StackError(f"something answers on {url} already: choose another --port")
    with ExitStack() as cleanup:
        api = start_part(stack, "api", ["--host", host, "--port", str(port)], cleanup)
        for number in range(workers):
            start_worker(stack, cleanup, number, threads=max(1, (os.cpu_count() or 1) // workers))
        start_part(stack, "reconciler", [], cleanup)
        api.wait_until(lambda: speaks_http(f"{url}/healthz"), START_LIMIT_S)
        yield Service(url, local_key(stack))


def start_worker(stack: Stack, cleanup: ExitStack, number: int = 0, threads: int = 1) -> Child:
    """Start a worker; variables of the stack's environment override the threads and the device that are chosen here."""
    gpus = count_gpus()
    chosen = WORKER_ENVIRONMENT | {"DRAGQUEUE_THREADS": str(threads)}
    if gpus:
        chosen["CUDA_VISIBLE_DEVICES"] = str(number % gpus)  # a PyTorch that cannot use it still falls back to the CPU
    environment = chosen | stack.environment
    return start_part(stack, "worker", ["--name", str(number)], cleanup, name=f"worker-{number}", environment=environment)


def count_gpus() -> int:
    """Return the number of NVIDIA's GPUs without loading PyTorch; 0 where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        listed = subprocess.run([command, "--list-gpus"], capture_output=True, text=True, timeout=GPU_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def start_part(
    stack: Stack, command: str, arguments: list[str], cleanup: ExitStack, *, name: str | None = None,
    environment: dict[str, str] | None = None,
) -> Child:  # fmt: skip
    """Start `dragqueue COMMAND` as a child that ends with this process and with `cleanup`."""
    name = name or command
    child = start(
        name, [sys.executable, "-P", "-m", "cli.main", command, *arguments], log=stack.logs / f"{name}.log",
        environment=environment or stack.environment,
    )  # fmt: skip
    stack.add(child)
    cleanup.callback(child.stop)
    return child
