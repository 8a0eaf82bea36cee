"""The time limits of connections, on a real server with a small application and no database."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

from api import transport
from api.transport import LimitedProtocol, Pace, SlowBody, bind

LIMIT_S = 20
STARTED, CANCELED = threading.Event(), threading.Event()
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope, receive, send):
    """Answers with the length of the body, or with much more than a client reads."""
    request = Request(scope, receive)
    if scope["path"] == "/waits":
        STARTED.set()
        try:
            await asyncio.sleep(LIMIT_S)
        except asyncio.CancelledError:
            CANCELED.set()
            raise
    if scope["path"] == "/large":
        await StreamingResponse(b"x" * 2**20 for _ in range(10_000))(scope, receive, send)
        return
    try:
        answer = PlainTextResponse(str(len(await request.body())))
    except SlowBody as error:
        answer = PlainTextResponse(str(error), 408)
    await answer(scope, receive, send)


@pytest.fixture
def server(monkeypatch):
    """Starts a server with other limits, and yields its address."""

    @contextmanager
    def serve(max_connections=100, **limits):
        for name, value in limits.items():
            monkeypatch.setattr(transport, name, value)
        monkeypatch.setattr(LimitedProtocol, "max_connections", max_connections)
        config = uvicorn.Config(Pace(application), port=0, http=LimitedProtocol, lifespan="off", log_level="error")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield running.servers[0].sockets[0].getsockname()
        running.should_exit = True
        thread.join()

    return serve


def connect(address):
    client = socket.create_connection(address, timeout=LIMIT_S)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    return client


def read_all(client):
    """Everything that comes until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(2**16):
            parts.append(part)
    except ConnectionResetError:
        parts.append(b"reset")
    return b"".join(parts)


def ask(address):
    with connect(address) as client:
        client.sendall(REQUEST)
        return client.recv(2**16).split(b"\r\n")[0]


def test_small_answers_go_at_once():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # by which asyncio knows that TCP_NODELAY is to be set


def test_half_a_head_is_waited_for_no_longer_than_the_limit(server):
    with server(HEAD_S=0.2) as address, connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost")
        assert read_all(client) == b""


def test_bytes_that_trickle_do_not_lengthen_the_wait_for_a_head(server):
    def trickle(client):
        for byte in b"GET / HTTP/1.1\r\n" + b"X" * 10_000:
            client.sendall(bytes([byte]))
            time.sleep(0.05)

    with server(HEAD_S=0.3) as address, connect(address) as client, pytest.raises(ConnectionError):
        trickle(client)


def test_a_request_in_progress_outlives_the_limit_of_heads(server):
    with server(HEAD_S=0.1) as address, connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        time.sleep(0.4)
        client.sendall(b"cd")
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")


def test_a_body_that_stops_is_answered_408(server):
    with server(BODY_GRACE_S=0.2) as address, connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        assert client.recv(2**16).startswith(b"HTTP/1.1 408")


def test_a_body_that_stops_late_gains_nothing_by_its_fast_beginning(server):
    with server(BODY_GRACE_S=0.3) as address, connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 3_000_000)
        assert client.recv(2**16).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_left(server):
    with server(WRITE_S=0.2) as address, connect(address) as client:
        client.sendall(REQUEST.replace(b"/ ", b"/large ", 1))
        time.sleep(1)
        assert len(read_all(client)) < 100 * 2**20  # of 10 GB: what the buffers held when the time was over


def test_no_more_than_a_part_of_a_refused_body_is_taken(server):
    with server(HEAD_S=0.5, BODY_GRACE_S=0.1) as address, connect(address) as client:
        client.settimeout(5)
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 408")
        sent = 0
        try:
            while sent < 2**30:
                sent += client.send(b"x" * 2**20)
        except ConnectionError:
            pass
        assert sent < 50 * 2**20  # the buffers of both ends beside the part


def test_a_request_ends_when_its_client_goes(server):
    with server() as address:
        with connect(address) as client:
            client.sendall(REQUEST.replace(b"/ ", b"/waits ", 1))
            assert STARTED.wait(LIMIT_S)
        assert CANCELED.wait(LIMIT_S)


def test_a_body_in_tiny_chunks_is_refused(server):
    with server() as address, connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2_000)
        assert read_all(client).startswith(b"HTTP/1.1 400")


def test_chunks_of_a_useful_size_are_read(server):
    with server() as address, connect(address) as client:
        chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk * 2_000
            + b"0\r\n\r\n"
        )
        assert read_all(client).endswith(b"200000")


def test_at_the_limit_of_connections_the_one_that_has_waited_longest_goes(server):
    with server(max_connections=3) as address:
        first, second, third = (connect(address) for _ in range(3))
        assert ask(address).startswith(b"HTTP/1.1 200")
        assert read_all(first) in (b"", b"reset")
        for other in (second, third):
            other.sendall(REQUEST)
            assert other.recv(2**16).startswith(b"HTTP/1.1 200")
            other.close()
        first.close()


def test_the_limit_of_connections_holds_for_many_that_come_at_once(server):
    with server(max_connections=10) as address:
        clients = [connect(address) for _ in range(60)]
        time.sleep(0.3)
        assert ask(address).startswith(b"HTTP/1.1 200")
        assert sum(is_open(client) for client in clients) <= 10
        for client in clients:
            client.close()


def is_open(client):
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_while_every_connection_is_in_use_a_new_one_is_refused(server):
    with server(max_connections=2) as address:
        busy = [connect(address) for _ in range(2)]
        for client in busy:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        time.sleep(0.2)
        with connect(address) as late:
            assert read_all(late) in (b"", b"reset")
        for client in busy:
            client.sendall(b"cd")
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
            client.close()
