"""A server that plays the service."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class ScriptedHandler(BaseHTTPRequestHandler):
    """Answers with the scripted responses in turn, the last of them again and again."""

    script: list[tuple[int, dict]] = []
    requests: list[tuple[str, str | None]] = []

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def do_GET(self):
        self.requests.append((f"{self.command} {self.path}", self.headers.get("idempotency-key")))
        status, document = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve() -> Iterator[Callable]:
    """Start a server that follows a script; returns its URL and the list of requests that it gets."""
    servers = []

    def serve(*script):
        handler = type("Scripted", (ScriptedHandler,), {"script": list(script), "requests": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", handler.requests

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
