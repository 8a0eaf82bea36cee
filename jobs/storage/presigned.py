"""Large uploads: their bytes go from the client straight to the store, and are kept once they are what was announced."""

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
SLACK = timedelta(hours=1)  # an id outlives its link: bytes may still be on their way, or an answer may have got lost


def announce(
    session: Session, tenant: str, sha256: str, size_bytes: int, kind: str | None, lifetime: timedelta
) -> PresignedUpload:
    """Note what a client is going to send; its link lives that long."""
    row = PresignedUpload(id=uuid4(), tenant=tenant, sha256=sha256, size_bytes=size_bytes, kind=kind)
    row.expires_at = func.now() + lifetime
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, tenant: str, presigned_id: UUID) -> PresignedUpload:
    """Raises UploadNotFound, also for those of others and those past their time."""
    known = (PresignedUpload.tenant == tenant, PresignedUpload.expires_at > func.now() - SLACK)
    row = session.scalar(select(PresignedUpload).where(PresignedUpload.id == presigned_id, *known))
    if row is None:
        raise UploadNotFound(f"there is no presigned upload {presigned_id}")
    return row


def headers(announced: PresignedUpload) -> dict[str, str]:
    """What the client has to send along; they are signed, so the link is good for these bytes."""
    digest = base64.b64encode(bytes.fromhex(announced.sha256)).decode()
    return {"Content-Length": str(announced.size_bytes), "x-amz-checksum-sha256": digest}


def read(announced: PresignedUpload, storage: Storage) -> Decoded:
    """What the client has sent.

    Raises NotUploaded, DecoderBusy, StorageUnavailable; InvalidJob, after which the store has it no more.
    """
    key = raw_key(announced.tenant, announced.id)
    try:
        check_size(announced, storage)
        return decode_stream(chunks(announced, storage), announced.kind, "file")
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
    """The file in parts, never more than was announced. Raises InvalidJob after the last when it is another file."""
    digest = hashlib.sha256()
    for chunk in storage.stream(raw_key(announced.tenant, announced.id), length=announced.size_bytes):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != announced.sha256:
        raise refusal("sha256", f"must be the file's: announced was {announced.sha256}, uploaded {digest.hexdigest()}")


def note_kept(session: Session, announced: PresignedUpload, upload: str) -> None:
    """Say which upload it has become: the raw bytes are needed no more."""
    session.execute(update(PresignedUpload).where(PresignedUpload.id == announced.id).values(upload=upload))


def past(session: Session, limit: int) -> list[PresignedUpload]:
    """Those whose time is over, the oldest first."""
    over = PresignedUpload.expires_at < func.now() - SLACK
    return list(session.scalars(select(PresignedUpload).where(over).order_by(PresignedUpload.expires_at).limit(limit)))


def forget(session: Session, announced: PresignedUpload, storage: Storage) -> None:
    """Remove row and raw bytes, also those sent again after it was kept. Raises StorageUnavailable."""
    storage.remove([raw_key(announced.tenant, announced.id)])
    session.execute(delete(PresignedUpload).where(PresignedUpload.id == announced.id))
