"""Connections: half requests, idle ones, slow ones, floods of them."""

import socket
import struct

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker


@attack("12", connections=1000, small=True)
def a_thousand_half_requests(attacker: Attacker) -> Strike:
    """Send headers that do not end, and hold the connection."""
    return attacker.held(b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: ")


@attack("12", connections=1000)
def a_thousand_half_bodies(attacker: Attacker) -> Strike:
    return attacker.held(attacker.request("POST", "/v1/jobs", headers={"Content-Length": "1000"}).head + b"{")


@attack("12", connections=1000)
def a_thousand_half_bodies_without_a_key(attacker: Attacker) -> Strike:
    return attacker.held(attacker.request("POST", "/v1/webhooks", key=None, headers={"Content-Length": "1000"}).head + b"{")


@attack("12", connections=1000)
def a_thousand_silent_connections(attacker: Attacker) -> Strike:
    return attacker.held(b"")


@attack("12", connections=500)
def headers_by_drops(attacker: Attacker) -> Strike:
    head = "GET /healthz HTTP/1.1\r\n" + "".join(f"X-{n}: a\r\n" for n in range(1000))
    request = attacker.request("GET", "/healthz")
    return attacker.trickle(type(request)(head.encode()), pause_s=0.2)


@attack("12", connections=300)
def connections_kept_after_an_answer(attacker: Attacker) -> Strike:
    """Ask once, keep the connection, ask nothing more."""

    def strike() -> None:
        with attacker.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            attacker.count(connection.recv(1000)[9:12].decode() or "cut")
            connection.settimeout(max(0.01, attacker.time_left()))
            connection.recv(1)

    return strike


@attack()
def connections_opened_and_reset(attacker: Attacker) -> Strike:
    def strike() -> None:
        with attacker.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            attacker.count("aborted")

    return strike


@attack()
def requests_whose_answer_nobody_reads(attacker: Attacker) -> Strike:
    """Send request after request on one connection and read nothing."""
    request = attacker.request("GET", "/openapi.json", headers={"Connection": "keep-alive"}).head

    def strike() -> None:
        with attacker.connect(receive_bytes=4096) as connection:
            connection.settimeout(1)
            attacker.count("begun")
            try:
                while attacker.time_left():
                    connection.sendall(request * 100)
            except OSError:
                attacker.count("cut")

    return strike


@attack()
def pipelined_requests(attacker: Attacker) -> Strike:
    """A thousand requests in one write."""
    many = attacker.request("GET", "/v1/models", headers={"Connection": "keep-alive"}).head * 1000
    last = attacker.request("GET", "/v1/models").head

    def strike() -> None:
        with attacker.connect() as connection:
            connection.sendall(many + last)
            attacker.count("sent")
            attacker.read_answer(connection)

    return strike
