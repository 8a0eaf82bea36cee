"""Reading a posted job from the request and decoding its files.

A job comes as JSON, or as multipart with the parts job (JSON), image (a photo) and movable (PNG).
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request
from pydantic import JsonValue

from api.bodies import BodyTooLarge, check_json_values, read_body, split_parts
from api.media_types import MULTIPART, MediaType, read_media_type
from api.routing import run_in_share
from jobs.errors import InvalidJob, Problem
from jobs.models.manifest import ModelManifest
from jobs.settings import Settings
from jobs.spec.job_spec import JobSpec, Movable
from jobs.spec.validation import parse_json, parse_spec, validate_document
from jobs.storage.decoding import Decoded, decode, decode_mask

PARTS = ("job", "image", "movable")
MAX_JOB_JSON_BYTES = 2**20  # 64 polygons of 256 corners with every digit of a double need 0.9 MB
MAX_JOB_JSON_VALUES = 60_000  # they need 50,000, metadata of 16 kB up to 8,000


@dataclass(frozen=True)
class PostedJob:
    """The bytes of a posted job and of the files beside it."""

    job_json: bytes
    image: bytes | None = None
    movable_png: bytes | None = None

    @property
    def has_files(self) -> bool:
        """Whether files came beside the JSON."""
        return self.image is not None or self.movable_png is not None

    @cached_property
    def document(self) -> JsonValue:
        """The JSON as Python values. Raises InvalidJob."""
        return parse_json(self.job_json)

    def fingerprint(self) -> str:
        """Return the sha256 of everything posted, whatever the order of the JSON's keys. Raises InvalidJob."""
        document = json.dumps(self.document, sort_keys=True).encode()
        parts = [hashlib.sha256(part or b"").hexdigest() for part in (document, self.image, self.movable_png)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class ParsedJob:
    """A posted job whose JSON is validated and whose files are decoded."""

    spec: JobSpec
    photo: Decoded | None = None
    mask: Decoded | None = None

    @property
    def files(self) -> list[Decoded]:
        """Return the files that came along."""
        return [file for file in (self.photo, self.mask) if file is not None]

    def resolved_spec(self, manifest: ModelManifest) -> JobSpec:
        """Return the spec as it would be stored, whether the job can run or not. Raises InvalidJob."""
        spec = self.spec
        if self.mask is not None:
            spec = spec.model_copy(update={"movable": Movable(upload=self.mask.sha256)})
        return spec.resolved(manifest.get(spec.model))


def parse_posted_job(posted: PostedJob, tenant: str) -> ParsedJob:
    """Validate the JSON and decode the files of a posted job. Raises InvalidJob, DecoderBusy.

    Without files pydantic reads the posted bytes itself: only so does strict validation know what JSON means.
    """
    if not posted.has_files:
        return ParsedJob(parse_spec(posted.job_json))
    document = posted.document
    photo = None if posted.image is None else decode(posted.image, "image", tenant)
    mask = None if posted.movable_png is None else decode_mask(posted.movable_png, "movable", tenant)
    if photo is not None:
        document = set_source_upload(document, photo.sha256)
    return ParsedJob(validate_document(document), photo, mask)


def set_source_upload(document: JsonValue, sha256: str) -> JsonValue:
    """Return the job's document with its part image as source.upload; source.crop stays. Raises InvalidJob."""
    if not isinstance(document, dict):
        return document  # validation refuses it
    source = document.get("source") or {}
    if not isinstance(source, dict) or source.keys() - {"crop"}:
        message = "with the part image it may hold crop and nothing else"
        raise InvalidJob([Problem(field="source", message=message)])
    return document | {"source": source | {"upload": sha256}}


async def read_posted_job(request: Request) -> PostedJob:
    """Read a posted job from the body: a multipart form, or else JSON.

    Raises:
        InvalidJob: the form is malformed, or has other parts.
        BodyTooLarge: the body, its JSON or the number of its values is over the limit.
    """
    media_type = read_media_type(request.headers)
    if media_type.name != MULTIPART:
        posted = PostedJob(bytes(await read_body(request, MAX_JOB_JSON_BYTES)))
    else:
        settings: Settings = request.app.state.settings
        body = await read_body(request, settings.max_body_bytes)
        posted = await run_in_share(request, read_parts, body, media_type)
    if len(posted.job_json) > MAX_JOB_JSON_BYTES:
        raise BodyTooLarge(f"{MAX_JOB_JSON_BYTES} bytes in the part job")
    check_json_values(posted.job_json, MAX_JOB_JSON_VALUES)
    return posted


def read_parts(body: bytearray, media_type: MediaType) -> PostedJob:
    """Read the parts of a multipart form. Raises InvalidJob."""
    named = split_parts(body, media_type, len(PARTS))
    parts = dict(named)
    for name in parts:
        if name not in PARTS:
            raise InvalidJob([Problem(field=name[:100], message=f"unknown part; known parts: {', '.join(PARTS)}")])
    if len(parts) < len(named):
        raise InvalidJob([Problem(field="body", message="a part is there twice")])
    if "job" not in parts:
        raise InvalidJob([Problem(field="job", message="the part job with the JSON is missing")])
    return PostedJob(parts["job"], parts.get("image"), parts.get("movable"))


PostedJobDep = Annotated[PostedJob, Depends(read_posted_job)]
