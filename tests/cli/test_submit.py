import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from typer.testing import CliRunner

from cli.errors import CommandError
from cli.main import app
from cli.submit import read_latent

JOB = {"id": str(UUID(int=1)), "state": "queued", "model": "m", "spec": {}, "attempt": 0, "created_at": "2026-01-01T00:00:00Z"}
UPLOAD = {"sha256": "a" * 64, "kind": "latent", "width": 8, "height": 4, "size_bytes": 9}


class Service(BaseHTTPRequestHandler):
    """Accepts everything, remembering it."""

    seen: list[tuple[str, bytes]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body))
        answer = json.dumps(UPLOAD if self.path == "/v1/uploads" else JOB).encode()
        self.send_response(202)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def service(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Service)
    Service.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DRAGQUEUE_KEY", "dq_1_2")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_saved_latent_is_uploaded_and_becomes_the_source(service, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"model": "m"}))
    torch.save({"latent": torch.ones(1, 4, 8, dtype=torch.float64)}, tmp_path / "w.pt")
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "job.json"), "--latent", str(tmp_path / "w.pt"), "--url", service])
    assert (done.exit_code, done.stdout) == (0, f"{UUID(int=1)}\n")
    (first, data), (second, body) = Service.seen
    assert (first, second) == ("/v1/uploads", "/v1/jobs")
    np.testing.assert_array_equal(load(data)["w"], np.ones((1, 4, 8), dtype=np.float32))
    assert json.loads(body) == {"model": "m", "source": {"latent": "a" * 64}}


def test_a_photo_goes_as_a_part(service, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"model": "m"}))
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    done = CliRunner().invoke(
        app, ["submit", str(tmp_path / "job.json"), "--image", str(tmp_path / "photo.jpg"), "--url", service]
    )
    assert done.exit_code == 0
    ((path, body),) = Service.seen
    assert (path, b'name="image"' in body, b"a photo" in body) == ("/v1/jobs", True, True)


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ({"other": torch.ones(3)}, "must hold a tensor"),
        ({"w": 3}, "must hold a tensor"),
        (print, "tensors alone"),
        ({"w": torch.eye(3).to_sparse()}, "dense"),
    ],
)
def test_what_is_no_saved_latent_is_refused(tmp_path, saved, reason):
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(CommandError, match=reason):
        read_latent(tmp_path / "w.pt")


def test_a_job_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "job.json").write_text("{")
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "job.json")])
    assert isinstance(done.exception, CommandError)
