"""The client by itself: retries, refusals and files, against small servers and no service."""

import hashlib
import inspect
import time
from uuid import UUID

import pytest
from dragqueue_client import Artifact, AsyncClient, Client, DownloadDamaged, RequestRefused, WaitTimeout
from dragqueue_client.artifact_files import is_downloaded, write_artifact

JOB = {"id": str(UUID(int=1)), "state": "queued", "model": "m", "spec": {}, "attempt": 0, "created_at": "2026-01-01T00:00:00Z"}
PROBLEM = {
    "code": "invalid_job",
    "detail": "the job is not valid",
    "errors": [{"field": "points", "message": "must not be empty"}],
}


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    methods = [
        {name: list(inspect.signature(method).parameters) for name, method in vars(kind).items() if not name.startswith("_")}
        for kind in (Client, AsyncClient)
    ]
    assert methods[0] == methods[1]


def test_a_busy_service_is_asked_again_with_the_same_idempotency_key(serve):
    url, requests = serve((503, {}), (202, JOB))
    with Client(url, "key") as client:
        assert client.submit({"model": "m"}).id == UUID(int=1)
    first, second = requests
    assert first == second
    assert first[1] is not None


def test_a_refusal_is_raised_at_once_with_its_code_and_fields(serve):
    url, requests = serve((422, PROBLEM))
    with (
        Client(url, "key") as client,
        pytest.raises(RequestRefused, match="the service refused: the job is not valid") as refused,
    ):
        client.submit({"model": "m"})
    assert (refused.value.status, refused.value.code, refused.value.problems[0].field) == (422, "invalid_job", "points")
    assert len(requests) == 1


def test_a_job_that_does_not_end_in_time_is_a_timeout(serve):
    url, _ = serve((200, JOB))
    began = time.monotonic()
    with Client(url, "key") as client, pytest.raises(WaitTimeout, match=r"has not ended after 0\.05 s"):
        client.wait(UUID(int=1), timeout_s=0.05)
    assert time.monotonic() >= began + 0.05


def artifact(data: bytes, name: str = "frames/00001.webp") -> Artifact:
    return Artifact(
        name=name, media_type="image/webp", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), url="/v1/..."
    )


def test_an_artifact_is_written_whole_and_found_again(tmp_path):
    frame = artifact(b"picture")
    assert not is_downloaded(tmp_path, frame)
    assert write_artifact(tmp_path, frame, b"picture").read_bytes() == b"picture"
    assert is_downloaded(tmp_path, frame)
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["00001.webp"]


@pytest.mark.parametrize("name", ["../result.png", "/etc/passwd", "frames/../../x", ".hidden"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DownloadDamaged, match="is no name of an artifact"):
        write_artifact(tmp_path, artifact(b"picture", name), b"picture")


def test_bytes_with_another_hash_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(DownloadDamaged, match="arrived damaged"):
        write_artifact(tmp_path, artifact(b"picture"), b"pictvre")
    assert list(tmp_path.iterdir()) == []
