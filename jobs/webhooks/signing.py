"""The body and the signature of a delivery, by the Standard Webhooks scheme (standardwebhooks.com)."""

import base64
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from standardwebhooks import Webhook

PREFIX = "whsec_"
SECRET_BYTES = 32
MAX_BODY_BYTES = 20_000
MAX_MESSAGE_LENGTH = 1000  # characters of an error message, in a body that would be too large


def new_secret() -> str:
    """Make a random secret in the form that receivers' libraries read."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(delivery: UUID, keys: Sequence[str], body: bytes, at: datetime) -> dict[str, str]:
    """Return the three headers that let a receiver verify a body, with a signature by each key."""
    at, text = at.astimezone(UTC), body.decode()  # the library takes any other zone's clock for UTC
    signatures = " ".join(Webhook(key).sign(str(delivery), at, text) for key in keys)
    return {"webhook-id": str(delivery), "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signatures}


def encode_event(event: str, at: datetime, data: dict[str, Any]) -> bytes:
    """Encode an event as compact JSON of less than MAX_BODY_BYTES.

    A long error message is cut; if that is not enough, the metadata is left out.
    """
    body = to_json(event, at, data)
    if len(body) >= MAX_BODY_BYTES and "error_message" in data:
        data = data | {"error_message": data["error_message"][:MAX_MESSAGE_LENGTH]}
        body = to_json(event, at, data)
    if len(body) >= MAX_BODY_BYTES:
        # a client's 1e300 has five bytes, and 301 as Postgres writes it
        data = {name: value for name, value in data.items() if name != "metadata"} | {"metadata_left_out": True}
        body = to_json(event, at, data)
    return body


def to_json(event: str, at: datetime, data: dict[str, Any]) -> bytes:
    """Encode an event as compact JSON of any size."""
    document = {"type": event, "timestamp": at.astimezone(UTC).isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
