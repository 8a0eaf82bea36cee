"""Presigned uploads: large files that clients announce, send straight to the store, and then complete."""

import base64
import hashlib
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from jobs.errors import InvalidJob, NotUploaded, ObjectMissing, UploadNotFound
from jobs.storage.decoding import Decoded, decode_stream, refusal
from jobs.storage.objects import Storage, raw_key
from jobs.tables import PresignedUpload

MAX_BYTES = 200 * 10**6
GRACE = timedelta(hours=1)  # an id outlives its link: bytes may still be on their way, or an answer may have got lost


def announce(
    session: Session, tenant: str, sha256: str, size_bytes: int, kind: str | None, lifetime: timedelta
) -> PresignedUpload:
    """Store a row for a file that a client is going to send; its link expires after the lifetime."""
    row = PresignedUpload(id=uuid4(), tenant=tenant, sha256=sha256, size_bytes=size_bytes, kind=kind)
    row.expires_at = func.now() + lifetime
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, tenant: str, presigned_id: UUID) -> PresignedUpload:
    """Return a presigned upload. Raises UploadNotFound, also for those of other tenants and those past their time."""
    known = (PresignedUpload.tenant == tenant, PresignedUpload.expires_at > func.now() - GRACE)
    row = session.scalar(select(PresignedUpload).where(PresignedUpload.id == presigned_id, *known))
    if row is None:
        raise UploadNotFound(f"there is no presigned upload {presigned_id}")
    return row


def headers(announced: PresignedUpload) -> dict[str, str]:
    """Return the headers that the client must send; they are signed, so the link is good for these bytes alone."""
    digest = base64.b64encode(bytes.fromhex(announced.sha256)).decode()
    return {"Content-Length": str(announced.size_bytes), "x-amz-checksum-sha256": digest}


def read(announced: PresignedUpload, storage: Storage) -> Decoded:
    """Decode the file that the client has sent.

    Raises:
        NotUploaded, DecoderBusy, StorageUnavailable.
        InvalidJob: it is not what was announced, or nothing that can be uploaded; the store has deleted it.
    """
    key = raw_key(announced.tenant, announced.id)
    try:
        check_size(announced, storage)
        return decode_stream(chunks(announced, storage), announced.kind, "file", announced.tenant)
    except ObjectMissing:
        raise NotUploaded(f"the file of {announced.id} has not been uploaded yet: PUT it to the link first") from None
    except InvalidJob:
        storage.remove([key])
        raise


def check_size(announced: PresignedUpload, storage: Storage) -> None:
    size = storage.size(raw_key(announced.tenant, announced.id))
    if size != announced.size_bytes:
        raise refusal("size_bytes", f"must be the file's: announced were {announced.size_bytes} bytes, uploaded {size}")


def chunks(announced: PresignedUpload, storage: Storage) -> Iterator[bytes]:
    """Yield the file in parts, never more than was announced. Raises InvalidJob after the last one if it is another file."""
    digest = hashlib.sha256()
    for chunk in storage.stream(raw_key(announced.tenant, announced.id), length=announced.size_bytes):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != announced.sha256:
        raise refusal("sha256", f"must be the file's: announced was {announced.sha256}, uploaded {digest.hexdigest()}")


def set_upload(session: Session, announced: PresignedUpload, upload: str) -> None:
    """Record which upload the file has become; its raw bytes are needed no more."""
    session.execute(update(PresignedUpload).where(PresignedUpload.id == announced.id).values(upload=upload))


def past(session: Session, limit: int) -> list[PresignedUpload]:
    """Return presigned uploads whose time is over, the oldest first."""
    over = PresignedUpload.expires_at < func.now() - GRACE
    return list(session.scalars(select(PresignedUpload).where(over).order_by(PresignedUpload.expires_at).limit(limit)))


def forget(session: Session, announced: PresignedUpload, storage: Storage) -> None:
    """Delete the row and the raw bytes, also bytes sent again after completion. Raises StorageUnavailable."""
    storage.remove([raw_key(announced.tenant, announced.id)])
    session.execute(delete(PresignedUpload).where(PresignedUpload.id == announced.id))
