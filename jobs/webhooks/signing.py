"""What a webhook is sent: a body, signed as the Standard Webhooks scheme (standardwebhooks.com) says."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

PREFIX = "whsec_"
SECRET_BYTES = 32
MAX_BODY_BYTES = 20_000
MAX_MESSAGE_LENGTH = 1000  # characters of an error message, in a body that would be too large


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed_headers(delivery: UUID, keys: Sequence[str], body: bytes, at: datetime) -> dict[str, str]:
    """The three headers that let a receiver verify a body; with a signature by each key."""
    timestamp = str(int(at.timestamp()))
    signed = f"{delivery}.{timestamp}.".encode() + body
    signatures = " ".join(f"v1,{signature(key, signed)}" for key in keys)
    return {"webhook-id": str(delivery), "webhook-timestamp": timestamp, "webhook-signature": signatures}


def signature(key: str, signed: bytes) -> str:
    secret = base64.b64decode(key.removeprefix(PREFIX))
    return base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def body_of(event: str, at: datetime, data: dict[str, Any]) -> bytes:
    """Compact JSON of less than MAX_BODY_BYTES: a long error message is cut, metadata that still does not fit left out."""
    body = encode(event, at, data)
    if len(body) >= MAX_BODY_BYTES and "error_message" in data:
        data = data | {"error_message": data["error_message"][:MAX_MESSAGE_LENGTH]}
        body = encode(event, at, data)
    if len(body) >= MAX_BODY_BYTES:
        # 1e300 takes five bytes where a client writes it and 301 where Postgres does
        data = {name: value for name, value in data.items() if name != "metadata"} | {"metadata_left_out": True}
        body = encode(event, at, data)
    return body


def encode(event: str, at: datetime, data: dict[str, Any]) -> bytes:
    document = {"type": event, "timestamp": at.astimezone(UTC).isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
