"""Reading a posted job: JSON, or multipart with the parts job (JSON), image (a photo) and movable (PNG)."""

import hashlib
import json
from dataclasses import dataclass

from fastapi import Request
from pydantic import JsonValue
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from jobs.errors import InvalidJob, Problem

PARTS = ("job", "image", "movable")


@dataclass(frozen=True)
class PostedJob:
    document: JsonValue
    image: bytes | None = None
    movable_png: bytes | None = None

    def fingerprint(self) -> str:
        """sha256 of everything that was posted."""
        document = json.dumps(self.document, sort_keys=True).encode()
        parts = [hashlib.sha256(part or b"").hexdigest() for part in (document, self.image, self.movable_png)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


async def posted_job(request: Request) -> PostedJob:
    """Raises InvalidJob when the body is not one of the two forms."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return PostedJob(parse_json(await request.body()))
    try:
        async with request.form(max_files=len(PARTS), max_fields=len(PARTS)) as form:
            named = [(name, await read_part(part)) for name, part in form.multi_items()]
    except HTTPException as error:  # starlette's word for a malformed form
        raise InvalidJob([Problem(field="body", message=str(error.detail))]) from error
    parts = dict(named)
    for name in parts:
        if name not in PARTS:
            raise InvalidJob([Problem(field=name[:100], message=f"unknown part; known parts: {', '.join(PARTS)}")])
    if len(parts) < len(named):
        raise InvalidJob([Problem(field="body", message="a part is there twice")])
    if "job" not in parts:
        raise InvalidJob([Problem(field="job", message="the part job with the JSON is missing")])
    return PostedJob(parse_json(parts["job"]), parts.get("image"), parts.get("movable"))


def with_upload(document: JsonValue, sha256: str) -> JsonValue:
    """The job with its part image as source.upload; what it says of the crop stays. Raises InvalidJob."""
    if not isinstance(document, dict):
        return document  # refused with everything else that is no job
    source = document.get("source") or {}
    if not isinstance(source, dict) or source.keys() - {"crop"}:
        message = "with the part image it may hold crop and nothing else"
        raise InvalidJob([Problem(field="source", message=message)])
    return document | {"source": source | {"upload": sha256}}


async def read_part(part: UploadFile | str) -> bytes:
    return part.encode() if isinstance(part, str) else await part.read()


def parse_json(data: bytes) -> JsonValue:
    try:
        document: JsonValue = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidJob([Problem(field="job", message=f"is not JSON ({error})")]) from error
    return document
