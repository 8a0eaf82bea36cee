"""Checks of the object store."""

import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from uuid import uuid4

import httpx2

from cli.doctor.findings import Finding, Findings, Verdict, ok, problem, run_check, warning
from jobs.settings import Settings
from jobs.storage.objects import REQUEST_TIMEOUTS, Storage

WARNING_SKEW_S, MAX_SKEW_S = 60.0, 900.0  # stores refuse signatures that are older than the latter
HTTP_TIMEOUT_S = 5.0


def check_store(settings: Settings) -> Findings:
    """Yield the findings about the store; each probe uses one object, which is removed at the end."""
    storage, key = Storage.from_settings(settings, REQUEST_TIMEOUTS), f"doctor/{uuid4()}"
    access = "start it, and see that DRAGQUEUE_S3_ENDPOINT and both keys are right"
    reached = run_check("store", check_bucket, storage, advice=access)
    yield run_check("store clock", check_store_clock, settings.s3_endpoint, advice="see that DRAGQUEUE_S3_ENDPOINT is right")
    yield reached
    if reached.verdict == Verdict.OK:
        rights = f"let the key get, put and delete objects of {settings.s3_bucket}"
        address = "set DRAGQUEUE_S3_PUBLIC_ENDPOINT to the address that clients reach"
        yield run_check("store rights", put_and_get, storage, key, advice=rights)
        yield run_check("store links", fetch_link, storage, key, advice=address)
        yield run_check("store deletion", delete, storage, key, advice=rights)


def check_bucket(name: str, storage: Storage) -> Finding:
    """Report a missing bucket."""
    if not storage.has_bucket():
        return problem(name, f"there is no bucket {storage.bucket}", "run dragqueue migrate, which makes it")
    return ok(name, f"has the bucket {storage.bucket}")


def put_and_get(name: str, storage: Storage, key: str) -> Finding:
    """Report a store that changes what is put into it."""
    storage.put(key, b"probe", "text/plain")
    if storage.get(key) != b"probe":
        return problem(name, "an object came back changed", "see what lies between this host and the store")
    return ok(name, "puts and gets objects")


def fetch_link(name: str, storage: Storage, key: str) -> Finding:
    """Report presigned links that do not lead to the object, at least from here."""
    url = storage.make_download_url(key, "probe.txt")
    response = httpx2.get(url, timeout=HTTP_TIMEOUT_S)
    host = httpx2.URL(url).netloc.decode()
    if response.content != b"probe":
        advice = "see that DRAGQUEUE_S3_PUBLIC_ENDPOINT leads to the same store, with the host name unchanged"
        return problem(name, f"{host} answered {response.status_code}", advice)
    return ok(name, f"can be fetched from {host}")


def delete(name: str, storage: Storage, key: str) -> Finding:
    """Delete the probe; an error that this raises is the finding."""
    storage.remove([key])
    return ok(name, "deletes objects")


def check_store_clock(name: str, endpoint: str, now: Callable[[], float] = time.time) -> Finding:
    """Report a clock that differs from this host's.

    Args:
        now: the host's clock, in seconds since the epoch.
    """
    before = now()
    response = httpx2.get(endpoint, timeout=HTTP_TIMEOUT_S)  # a refusal carries the time too
    if "date" not in response.headers:
        return warning(name, "the store does not tell its time", "see that it is within 15 min of this host's: signatures expire")
    store_time = parsedate_to_datetime(response.headers["date"]).astimezone(UTC).timestamp()
    skew_s = store_time - (before + now()) / 2
    found = f"{skew_s:+.0f} s from this host's"
    if abs(skew_s) > WARNING_SKEW_S:
        advice = "let both keep time by NTP: signatures and links expire by the store's clock"
        return (problem if abs(skew_s) > MAX_SKEW_S else warning)(name, found, advice)
    return ok(name, found)
