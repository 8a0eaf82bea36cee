"""Files that clients send straight to the store: announced, sent, completed."""

import asyncio
import hashlib
import io
from datetime import timedelta

import httpx2
import numpy as np
import pytest
from dragqueue_client import AsyncClient, Client, RequestRefused, calls
from PIL import Image
from sqlalchemy import func, update

from embedded.servers import free_port, speaks_http
from embedded.service import start_part
from jobs.storage import presigned
from jobs.storage.objects import raw_key
from jobs.tables import PresignedUpload, Tenant
from tests.services.test_photos import photo

API_S = 60


def announce(client, data, **more):
    file = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} | more
    answer = client.post("/v1/uploads/presigned", json=file)
    assert answer.status_code == 201, answer.text
    return answer.json()


def send(link, data):
    return httpx2.request(link["method"], link["url"], content=data, headers=link["headers"])


def complete(client, link):
    return client.post(f"/v1/uploads/presigned/{link['id']}/complete")


def problem(answer):
    document = answer.json()
    return answer.status_code, document["code"], [error["field"] for error in document["errors"]]


def stored(storage, link):
    return bool(list(storage.keys(raw_key("default", link["id"]))))


@pytest.fixture
def service(stack, queue, cleanup):
    """The address of an API process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    start_part(stack, "api", ["--port", str(port)], cleanup).wait_until(lambda: speaks_http(f"{url}/healthz"), API_S)
    return url


def test_a_file_sent_to_its_link_becomes_the_upload_that_it_is_when_sent_directly(client):
    link = announce(client, photo())
    assert send(link, photo()).status_code == 200
    kept = complete(client, link)
    assert (kept.status_code, kept.json()) == (201, client.post("/v1/uploads", content=photo()).json())


def test_asked_again_it_is_the_same_upload_and_the_file_as_it_was_sent_is_gone(client, storage):
    link = announce(client, photo())
    send(link, photo())
    first = complete(client, link)
    assert (complete(client, link).json(), stored(storage, link)) == (first.json(), False)
    client.delete(f"/v1/uploads/{first.json()['sha256']}")
    assert problem(complete(client, link)) == (404, "upload_not_found", [])


def test_a_request_that_another_overtakes_gets_the_same_answer(client, monkeypatch):
    link = announce(client, photo())
    send(link, photo())
    read, answers = presigned.read, []

    def late(announced, storage):
        monkeypatch.setattr(presigned, "read", read)
        answers.append(complete(client, link).json())
        return read(announced, storage)

    monkeypatch.setattr(presigned, "read", late)
    assert [complete(client, link).json()] == answers


def test_a_mask_is_announced_as_one(client):
    png = photo()
    link = announce(client, png, kind="mask")
    send(link, png)
    assert complete(client, link).json()["kind"] == "mask"


def test_nothing_can_be_completed_before_it_was_sent(client):
    assert problem(complete(client, announce(client, photo()))) == (409, "not_uploaded", [])


def test_another_file_of_the_same_length_is_refused_and_removed_and_the_right_one_may_follow(client, storage):
    link = announce(client, photo())
    other = bytes(len(photo()))
    storage.put(raw_key("default", link["id"]), other, "image/png")  # S3 and MinIO would not take it by the link
    assert problem(complete(client, link)) == (422, "invalid_job", ["sha256"])
    assert not stored(storage, link)
    send(link, photo())
    assert complete(client, link).status_code == 201


def test_a_file_of_another_length_is_refused_with_both_lengths(client, storage):
    link = announce(client, photo())
    storage.put(raw_key("default", link["id"]), photo() + b"0", "image/png")
    answer = complete(client, link)
    assert problem(answer) == (422, "invalid_job", ["size_bytes"])
    assert f"announced were {len(photo())} bytes, uploaded {len(photo()) + 1}" in answer.text
    assert not stored(storage, link)


def test_what_is_no_picture_is_refused_and_removed(client, storage):
    link = announce(client, b"hello")
    send(link, b"hello")
    assert problem(complete(client, link)) == (422, "invalid_job", ["file"])
    assert not stored(storage, link)


@pytest.mark.parametrize(
    ("file", "field", "limit"),
    [
        ({"sha256": "0" * 64, "size_bytes": presigned.MAX_BYTES + 1}, "size_bytes", "200000000"),
        ({"sha256": "0" * 64, "size_bytes": 0}, "size_bytes", "1"),
        ({"sha256": "0" * 63, "size_bytes": 1}, "sha256", "64"),
        ({"sha256": "0" * 64, "size_bytes": 1, "kind": "latent"}, "kind", "mask"),
    ],
)
def test_what_may_not_be_announced_is_said_with_its_limit(client, file, field, limit):
    answer = client.post("/v1/uploads/presigned", json=file)
    assert problem(answer) == (422, "invalid_parameters", [field])
    assert limit in answer.json()["errors"][0]["message"]


def test_an_id_outlives_its_link_by_an_hour(client, sessions):
    link = announce(client, photo())
    send(link, photo())
    for age_min, status in ((59, 201), (61, 404)):
        with sessions.begin() as session:
            session.execute(update(PresignedUpload).values(expires_at=func.now() - timedelta(minutes=age_min)))
        assert complete(client, link).status_code == status


@pytest.mark.parametrize(("quota", "enough"), [("max_uploads", 1), ("max_stored_bytes", 2 * len(photo()) - 1)])
def test_announced_files_count_against_the_quotas(client, sessions, quota, enough):
    with sessions.begin() as session:
        setattr(session.get_one(Tenant, "default"), quota, enough)
    link, file = announce(client, photo()), {"sha256": "0" * 64, "size_bytes": len(photo())}
    assert problem(client.post("/v1/uploads/presigned", json=file)) == (429, "quota_exceeded", [])
    send(link, photo())
    assert complete(client, link).status_code == 201


def test_the_client_sends_a_photo_of_more_than_30_mb_to_the_store(service, api_key, storage):
    out = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 256, (3400, 3300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, format="PNG", compress_level=1)
    data = out.getvalue()
    before = set(storage.keys("t/default/p/"))
    assert len(data) > calls.MAX_DIRECT_UPLOAD_BYTES
    with Client(service, api_key) as client:
        upload = client.upload(data)
    assert (upload.kind, upload.width, upload.height) == ("image", 3300, 3400)
    assert set(storage.keys("t/default/p/")) == before


def test_so_does_the_client_for_asyncio(service, api_key, monkeypatch):
    monkeypatch.setattr(calls, "MAX_DIRECT_UPLOAD_BYTES", 0)

    async def upload():
        async with AsyncClient(service, api_key) as client:
            with pytest.raises(RequestRefused, match="is not a picture"):
                await client.upload(b"hello")
            return await client.upload(photo(), kind="mask")

    assert asyncio.run(upload()).kind == "mask"
