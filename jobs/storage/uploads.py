"""Uploads of tenants: rows in Postgres, bytes in the store under their own hash."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from jobs.errors import UploadInUse, UploadNotFound
from jobs.states import JobState
from jobs.storage.decoding import Decoded
from jobs.storage.objects import Storage, upload_key
from jobs.tables import Job, Upload

USED_PRECISION = timedelta(hours=1)
CHUNK_ROWS = 2_000  # locked by one statement


def add(session: Session, tenant: str, decoded: Decoded, storage: Storage) -> Upload:
    """Store row and bytes; the same content again is the same upload. Raises StorageUnavailable.

    The row comes first, so that a concurrent removal waits for this transaction.
    """
    added = insert(Upload).values(**row_of(tenant, decoded))
    known = {"used_at": func.now(), "outline": added.excluded.outline}
    session.execute(added.on_conflict_do_update(index_elements=["tenant", "sha256"], set_=known))
    storage.put_file(upload_key(tenant, decoded.sha256), decoded.body, decoded.media_type)
    return get(session, tenant, decoded.sha256)


def use(session: Session, tenant: str, sha256: str) -> Upload:
    """Return an upload that a job is made from, and keep it from removal until the transaction ends.

    Raises:
        UploadNotFound.
    """
    upload = get(session, tenant, sha256, share=True)
    long_ago = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.used_at < func.now() - USED_PRECISION)
    unlocked = select(Upload.sha256).where(*long_ago).with_for_update(skip_locked=True, key_share=True)
    which = (Upload.tenant == tenant, Upload.sha256.in_(unlocked))  # never waits for other users of the upload
    session.execute(update(Upload).where(*which).values(used_at=func.now()))
    return upload


def use_all(session: Session, tenant: str, names: Collection[str]) -> None:
    """Keep many uploads that jobs are made from, as `use` keeps one, by a few statements. Raises UploadNotFound."""
    ordered = sorted(names)  # everybody locks in one order
    for start in range(0, len(ordered), CHUNK_ROWS):
        some = ordered[start : start + CHUNK_ROWS]
        mine = (Upload.tenant == tenant, Upload.sha256.in_(some))
        kept = select(Upload.sha256).where(*mine).order_by(Upload.sha256)
        found = set(session.scalars(kept.with_for_update(read=True, key_share=True)))
        missing = next((sha256 for sha256 in some if sha256 not in found), None)
        if missing is not None:
            raise UploadNotFound(f"the upload {missing} was deleted while the batch was checked: send it again")
        old = select(Upload.sha256).where(*mine, Upload.used_at < func.now() - USED_PRECISION)
        which = (Upload.tenant == tenant, Upload.sha256.in_(old.with_for_update(skip_locked=True, key_share=True)))
        session.execute(update(Upload).where(*which).values(used_at=func.now()).execution_options(synchronize_session=False))


def set_outline(session: Session, tenant: str, sha256: str, outline: bytes) -> None:
    """Store the outline of a mask from before there were outlines, unless somebody else has the row just now."""
    which = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.outline.is_(None))
    unlocked = select(Upload.sha256).where(*which).with_for_update(skip_locked=True, key_share=True)
    session.execute(
        update(Upload)
        .where(Upload.tenant == tenant, Upload.sha256.in_(unlocked))
        .values(outline=outline)
        .execution_options(synchronize_session=False)
    )


def get(session: Session, tenant: str, sha256: str, *, lock: bool = False, share: bool = False) -> Upload:
    """Return an upload. Raises UploadNotFound, also for other tenants' uploads.

    Args:
        lock: until the transaction ends no other transaction may lock the row in either way.
        share: until the transaction ends no other transaction may remove the row.
    """
    query = select(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256)
    query = query.with_for_update() if lock else query.with_for_update(read=True, key_share=True) if share else query
    upload = session.scalar(query)
    if upload is None:
        raise UploadNotFound(f"there is no upload {sha256}")
    return upload


def find(session: Session, tenant: str, sha256: str) -> Upload | None:
    """Find an upload; None when there is none."""
    return session.scalar(select(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256))


def unused(session: Session, after: timedelta, limit: int) -> list[Upload]:
    """Return uploads that no submission has named for so long, the longest unused first."""
    return list(session.scalars(select(Upload).where(Upload.used_at < func.now() - after).order_by(Upload.used_at).limit(limit)))


def touch(session: Session, tenant: str, sha256: str) -> None:
    """Record that an upload is in use."""
    session.execute(update(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256).values(used_at=func.now()))


def remove(session: Session, tenant: str, sha256: str, storage: Storage, unused_for: timedelta = timedelta(0)) -> None:
    """Delete an upload's row and bytes.

    Raises:
        UploadNotFound.
        UploadInUse: a job that has not ended needs it, or a submission has named it within unused_for.
    """
    get(session, tenant, sha256, lock=True)
    job_id = find_user(session, tenant, sha256)
    if job_id is not None:
        raise UploadInUse(f"job {job_id} needs it")
    which = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.used_at <= func.clock_timestamp() - unused_for)
    if session.scalar(delete(Upload).where(*which).returning(Upload.sha256)) is None:
        raise UploadInUse("it was named by a submission a moment ago")
    storage.remove([upload_key(tenant, sha256)])


def find_user(session: Session, tenant: str, sha256: str) -> UUID | None:
    """Return the public id of a job that has not ended and needs the upload, also as the photo that its chain began with."""
    root = aliased(Job)
    for state in (JobState.QUEUED, JobState.RUNNING):  # each has an index of its own
        query = (
            select(func.coalesce(Job.client_id, Job.id))
            .outerjoin(root, Job.root == root.id)
            .where(Job.tenant == tenant, Job.state == state)
        )
        needs = or_(*(name.as_string() == sha256 for job in (Job, root) for name in input_columns(job)))
        job_id = session.scalar(query.where(needs).limit(1))
        if job_id is not None:
            return job_id
    return None


def input_columns(job: type[Job]) -> tuple[Any, ...]:
    return job.spec["source"]["upload"], job.spec["source"]["latent"], job.spec["movable"]["upload"]


def row_of(tenant: str, decoded: Decoded) -> dict[str, Any]:
    """Return the columns of an upload's row."""
    size = {"width": decoded.width, "height": decoded.height, "size_bytes": decoded.size_bytes}
    return {"tenant": tenant, "sha256": decoded.sha256, "kind": decoded.kind, "outline": decoded.outline} | size
