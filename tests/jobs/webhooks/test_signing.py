import hmac
import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.webhooks.signing import MAX_BODY_BYTES, encode_event, new_secret, sign

AT = datetime(2026, 11, 21, 12, 30, tzinfo=timezone(timedelta(hours=2)))


def sent(keys, data=None):
    body = encode_event("job.succeeded", AT, data or {"job": "a", "error_message": "caf\u00e9"})
    return sign(uuid4(), keys, body, datetime.now(UTC)), body


def test_the_schemes_own_library_verifies_what_is_sent():
    key = new_secret()
    headers, body = sent([key])
    assert Webhook(key).verify(body, headers) == {
        "type": "job.succeeded", "timestamp": "2026-11-21T10:30:00Z", "data": {"job": "a", "error_message": "caf\u00e9"},
    }  # fmt: skip


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2))])
def test_the_signature_is_that_of_the_schemes_own_tests(zone):
    at = datetime.fromtimestamp(1614265330, zone)
    headers = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], b'{"test": 2432232314}', at)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_key_signs_the_same_bytes():
    """With plain HMAC beside it: id, second and body, joined by dots."""
    keys, body = [new_secret(), new_secret()], encode_event("job.succeeded", AT, {"job": "caf\u00e9"})
    headers = sign("id", keys, body, AT)
    signed = b"id.%d." % AT.timestamp() + body
    macs = [hmac.digest(b64decode(key.removeprefix("whsec_")), signed, "sha256") for key in keys]
    assert headers["webhook-signature"] == " ".join(f"v1,{b64encode(mac).decode()}" for mac in macs)


def test_every_key_signs_and_no_other_does():
    new, old = new_secret(), new_secret()
    headers, body = sent([new, old])
    assert len(headers["webhook-signature"].split(" ")) == 2
    for key in (new, old):
        Webhook(key).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)


@pytest.mark.parametrize("change", [{"webhook-id": "other"}, {"webhook-timestamp": "1"}, {"webhook-signature": "v1,AAAA"}])
def test_nothing_that_is_signed_can_be_changed(change):
    key = new_secret()
    headers, body = sent([key])
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(body, headers | change)
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(body + b" ", headers)


def test_a_secret_is_256_random_bits():
    assert len(b64decode(new_secret().removeprefix("whsec_"), validate=True)) == 32
    assert new_secret() != new_secret()


@pytest.mark.parametrize(
    "data",
    [
        {"error_message": "x" * 100_000, "metadata": {"order": 17}},
        {"error_message": "\U0001f600" * 10_000, "metadata": {"order": 17}},
        {"error_message": "\x01" * 10_000, "metadata": {"order": 17}},
    ],
)
def test_a_long_error_message_is_cut_and_all_else_stays(data):
    body = encode_event("job.failed", AT, data)
    said = json.loads(body)["data"]
    assert len(body) < MAX_BODY_BYTES
    assert (said["error_message"], said["metadata"]) == (data["error_message"][:1000], {"order": 17})


def test_metadata_that_does_not_fit_is_left_out():
    body = encode_event("job.failed", AT, {"job": "a", "metadata": {"sizes": [10**300] * 100}})
    assert json.loads(body)["data"] == {"job": "a", "metadata_left_out": True}


def test_what_fits_is_not_touched():
    data = {"error_message": "x" * 2000, "metadata": {"text": "y" * 16_000}}
    assert json.loads(encode_event("job.failed", AT, data))["data"] == data
