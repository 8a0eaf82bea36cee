import urllib.request
from urllib.error import HTTPError

import httpx2
import pytest

from jobs.errors import ObjectMissing, StorageUnavailable
from jobs.storage.objects import Storage


def test_what_is_put_can_be_got(storage):
    storage.put("t/x/one.bin", b"\x00\x01", "application/octet-stream")
    assert storage.get("t/x/one.bin") == b"\x00\x01"


def test_a_missing_object_is_said_to_be_missing(storage):
    with pytest.raises(ObjectMissing):
        storage.get("t/x/nothing")


def test_a_presigned_url_lets_anybody_download_and_nobody_tamper(storage):
    storage.put("t/x/two.txt", b"hello", "text/plain")
    url = storage.make_download_url("t/x/two.txt", "two.txt")
    with urllib.request.urlopen(url) as response:
        assert response.read() == b"hello"
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(url.replace("two.txt?", "one.bin?"))


def test_a_link_to_upload_takes_one_object_of_the_length_that_was_signed(storage):
    headers = {"Content-Length": "5", "x-amz-checksum-sha256": "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="}
    url = storage.make_upload_url("t/x/four", headers)
    assert put(url, b"hello", headers) == 200
    assert storage.get("t/x/four") == b"hello"
    longer = put(url, b"hello, world", headers | {"Content-Length": "12"})
    elsewhere = put(url.replace("four?", "five?"), b"hello", headers)
    without = put(url, b"hello", {"Content-Length": "5"})
    assert (longer, elsewhere, without) == (403, 403, 403)
    assert (storage.get("t/x/four"), storage.size("t/x/four"), b"".join(storage.stream("t/x/four", length=4))) == (
        b"hello",
        5,
        b"hell",
    )


def put(url, data, headers):
    return httpx2.put(url, content=data, headers=headers).status_code


def test_a_wrong_key_is_refused(settings):
    wrong = Storage.from_settings(settings.model_copy(update={"s3_access_key": "somebody"}))
    with pytest.raises(StorageUnavailable):
        wrong.put("t/x/three", b"", "text/plain")


def test_a_store_that_is_away_is_told_apart_from_a_missing_object(settings):
    away = Storage.from_settings(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(StorageUnavailable):
        away.get("t/x/one.bin")
