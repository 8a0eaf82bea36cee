"""What tenants have uploaded: rows in Postgres, bytes in the store under their own hash."""

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


def add(session: Session, tenant: str, decoded: Decoded, storage: Storage) -> Upload:
    """Store row and bytes; the same content again is the same upload. The row first: who removes it waits for us."""
    added = insert(Upload).values(**row_of(tenant, decoded))
    session.execute(added.on_conflict_do_update(index_elements=["tenant", "sha256"], set_={"used_at": func.now()}))
    storage.put(upload_key(tenant, decoded.sha256), decoded.data, decoded.media_type)
    return get(session, tenant, decoded.sha256)


def use(session: Session, tenant: str, sha256: str) -> Upload:
    """An upload that a job is made from: nobody may remove it until the transaction ends. Raises UploadNotFound."""
    upload = get(session, tenant, sha256, hold=True)
    long_ago = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.used_at < func.now() - USED_PRECISION)
    unlocked = select(Upload.sha256).where(*long_ago).with_for_update(skip_locked=True, key_share=True)
    which = (Upload.tenant == tenant, Upload.sha256.in_(unlocked))  # others that use it are not waited for
    session.execute(update(Upload).where(*which).values(used_at=func.now()))
    return upload


def get(session: Session, tenant: str, sha256: str, *, lock: bool = False, hold: bool = False) -> Upload:
    """Raises UploadNotFound, also for other tenants' uploads.

    Args:
        lock: nobody else may hold or lock it until the transaction ends.
        hold: nobody may remove it until then.
    """
    query = select(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256)
    query = query.with_for_update() if lock else query.with_for_update(read=True, key_share=True) if hold else query
    upload = session.scalar(query)
    if upload is None:
        raise UploadNotFound(f"there is no upload {sha256}")
    return upload


def unused(session: Session, after: timedelta, limit: int) -> list[Upload]:
    """Those that no submission has named for so long, the longest first."""
    return list(session.scalars(select(Upload).where(Upload.used_at < func.now() - after).order_by(Upload.used_at).limit(limit)))


def touch(session: Session, tenant: str, sha256: str) -> None:
    """Note that an upload is in use."""
    session.execute(update(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256).values(used_at=func.now()))


def remove(session: Session, tenant: str, sha256: str, storage: Storage, unused_for: timedelta = timedelta(0)) -> None:
    """Raises UploadNotFound; UploadInUse while a job needs it that has not ended, or when it was used since."""
    get(session, tenant, sha256, lock=True)
    user = find_user(session, tenant, sha256)
    if user is not None:
        raise UploadInUse(f"job {user} needs it")
    which = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.used_at <= func.clock_timestamp() - unused_for)
    if session.scalar(delete(Upload).where(*which).returning(Upload.sha256)) is None:
        raise UploadInUse("it was named by a submission a moment ago")
    storage.remove([upload_key(tenant, sha256)])


def find_user(session: Session, tenant: str, sha256: str) -> UUID | None:
    """A job that has not ended and needs the upload, also as the photo that its chain began with."""
    root = aliased(Job)
    for state in (JobState.QUEUED, JobState.RUNNING):  # each has an index of its own
        query = select(Job.id).outerjoin(root, Job.root == root.id).where(Job.tenant == tenant, Job.state == state)
        needs = or_(*(name.as_string() == sha256 for job in (Job, root) for name in inputs_of(job)))
        user = session.scalar(query.where(needs).limit(1))
        if user is not None:
            return user
    return None


def inputs_of(job: type[Job]) -> tuple[Any, ...]:
    return job.spec["source"]["upload"], job.spec["source"]["latent"], job.spec["movable"]["upload"]


def row_of(tenant: str, decoded: Decoded) -> dict[str, Any]:
    """The columns of an upload's row."""
    described = {"kind": decoded.kind, "width": decoded.width, "height": decoded.height, "size_bytes": len(decoded.data)}
    return {"tenant": tenant, "sha256": decoded.sha256} | described
