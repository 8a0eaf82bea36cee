import hashlib
import re
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from cli.download import download
from cli.errors import CommandError
from cli.main import app
from tests.generators import DATA

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Files(BaseHTTPRequestHandler):
    """Serves `content`; hangs up after `break_after` bytes; notes which ranges were asked for."""

    content, break_after, ranges, asked = CONTENT, None, True, []

    def do_GET(self):
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1]) if self.ranges else 0
        self.asked.append(self.headers.get("Range"))
        body = self.content[start:]
        if self.path == "/missing":
            self.send_error(404)
            return
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
        else:
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.break_after])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def files():
    """The class of the handler, to change what is served, and the server's address."""
    handler = type("Served", (Files,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def fetch(files, path, max_bytes=2**21):
    seen = []
    download(f"{files.url}/model.pkl", path, max_bytes, lambda have, total: seen.append((have, total)))
    return seen


def test_a_file_comes_whole_and_progress_is_told(files, tmp_path):
    assert fetch(files, tmp_path / "model")[-1] == (2**20, 2**20)
    assert (tmp_path / "model").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_broken_download_goes_on_where_it_stopped(files, tmp_path):
    files.break_after = 300_000
    with pytest.raises(CommandError, match="run the command again to go on"):
        fetch(files, tmp_path / "model")
    files.break_after = None
    fetch(files, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT
    assert files.asked == [None, "bytes=300000-"]


def test_a_server_without_ranges_begins_again(files, tmp_path):
    (tmp_path / "model.part").write_bytes(b"x" * 2_000_000)
    files.ranges = False
    fetch(files, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(files, tmp_path):
    (tmp_path / "model.part").write_bytes(CONTENT)
    fetch(files, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_file_that_is_too_large_is_refused_before_it_comes(files, tmp_path):
    with pytest.raises(CommandError, match="larger than the 1000 bytes"):
        fetch(files, tmp_path / "model", max_bytes=1000)
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_told(files, tmp_path):
    with pytest.raises(CommandError, match="answers 404"):
        download(f"{files.url}/missing", tmp_path / "model", 2**20, lambda have, total: None)


def publish(files, folder):
    folder.mkdir()
    (folder / "manifest.toml").write_text(
        f'[models]\n\n[public.faces]\nurl = "{files.url}/faces.pkl"\n'
        'licence = "CC0-1.0"\ndefaults = { learning_rate = 0.003 }\n'
    )
    files.content = (DATA / "sg2-64-rosinality.pt").read_bytes()
    return ["--checkpoints", str(folder)]


def test_a_public_model_is_fetched_imported_and_its_hash_recorded(files, tmp_path):
    where = publish(files, tmp_path / "checkpoints")
    assert CliRunner().invoke(app, ["models", "download", "faces", *where]).exit_code == 0
    tables = tomllib.loads((tmp_path / "checkpoints" / "manifest.toml").read_text())
    sha256 = hashlib.sha256(files.content).hexdigest()
    entry = tables["models"]["faces"]
    assert (tables["public"]["faces"]["sha256"], entry["source_sha256"]) == (sha256, sha256)
    assert (entry["licence"], entry["defaults"]) == ("CC0-1.0", {"learning_rate": 0.003})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["faces.safetensors", "manifest.toml"]


def test_a_public_file_that_has_changed_is_refused(files, tmp_path):
    where = publish(files, tmp_path / "checkpoints")
    CliRunner().invoke(app, ["models", "download", "faces", *where])
    CliRunner().invoke(app, ["models", "remove", "faces", *where])
    files.content = (DATA / "sg2-64-mmagic.pth").read_bytes()
    answer = CliRunner().invoke(app, ["models", "download", "faces", *where])
    assert "at the first download it was" in str(answer.exception)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["manifest.toml"]


def test_a_public_file_that_is_no_checkpoint_leaves_nothing(files, tmp_path):
    where = publish(files, tmp_path / "checkpoints")
    files.content = b"an error page"
    answer = CliRunner().invoke(app, ["models", "download", "faces", *where])
    assert isinstance(answer.exception, CommandError)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["manifest.toml"]
