"""What tenants have uploaded: rows in Postgres, bytes in the store under their own hash."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.decoding import Decoded
from jobs.errors import UploadInUse, UploadNotFound
from jobs.models import Job, Upload
from jobs.states import JobState
from jobs.storage import Storage, upload_key

USED_PRECISION = timedelta(hours=1)


class UploadRepository:
    """Never commits: who opened the session does."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, tenant: str, decoded: Decoded, storage: Storage) -> Upload:
        """Store bytes and row; the same content again is the same upload."""
        storage.put(upload_key(tenant, decoded.sha256), decoded.data, decoded.media_type)
        added = insert(Upload).values(**row_of(tenant, decoded))
        self.session.execute(added.on_conflict_do_update(index_elements=["tenant", "sha256"], set_={"used_at": func.now()}))
        return self.get(tenant, decoded.sha256)

    def use(self, tenant: str, sha256: str) -> Upload:
        """An upload that a job is made from: nobody may remove it until the transaction ends. Raises UploadNotFound."""
        upload = self.get(tenant, sha256, hold=True)
        long_ago = (Upload.tenant == tenant, Upload.sha256 == sha256, Upload.used_at < func.now() - USED_PRECISION)
        self.session.execute(update(Upload).where(*long_ago).values(used_at=func.now()))
        return upload

    def get(self, tenant: str, sha256: str, *, lock: bool = False, hold: bool = False) -> Upload:
        """Raises UploadNotFound, also for other tenants' uploads.

        Args:
            lock: nobody else may hold or lock it until the transaction ends.
            hold: nobody may remove it until then.
        """
        query = select(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256)
        query = query.with_for_update() if lock else query.with_for_update(read=True, key_share=True) if hold else query
        upload = self.session.scalar(query)
        if upload is None:
            raise UploadNotFound(f"there is no upload {sha256}")
        return upload

    def unused(self, after: timedelta, limit: int) -> list[Upload]:
        """Those that no submission has named for so long."""
        return list(self.session.scalars(select(Upload).where(Upload.used_at < func.now() - after).limit(limit)))

    def remove(self, tenant: str, sha256: str, storage: Storage) -> None:
        """Raises UploadNotFound; UploadInUse while a job needs it that has not ended; StorageUnavailable."""
        self.get(tenant, sha256, lock=True)
        named = (Job.spec["source"]["upload"], Job.spec["source"]["latent"], Job.spec["movable"]["upload"])
        active = (Job.tenant == tenant, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
        user = self.session.scalar(select(Job.id).where(*active, or_(*(name.as_string() == sha256 for name in named))).limit(1))
        if user is not None:
            raise UploadInUse(f"job {user} needs it")
        storage.remove([upload_key(tenant, sha256)])
        self.session.execute(delete(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256))


def row_of(tenant: str, decoded: Decoded) -> dict[str, Any]:
    """The columns of an upload's row."""
    described = {"kind": decoded.kind, "width": decoded.width, "height": decoded.height, "size_bytes": len(decoded.data)}
    return {"tenant": tenant, "sha256": decoded.sha256} | described
