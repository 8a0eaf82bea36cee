"""What tenants have uploaded: rows in Postgres, bytes in the store under their own hash."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.decoding import Decoded
from jobs.errors import UploadNotFound
from jobs.models import Upload
from jobs.storage import Storage, upload_key


class UploadRepository:
    """Never commits: who opened the session does."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, tenant: str, decoded: Decoded, storage: Storage) -> Upload:
        """Store bytes and row; the same content again is the same upload."""
        storage.put(upload_key(tenant, decoded.sha256), decoded.data, decoded.media_type)
        row = row_of(tenant, decoded)
        self.session.execute(insert(Upload).values(**row).on_conflict_do_nothing())
        return self.get(tenant, decoded.sha256)

    def get(self, tenant: str, sha256: str) -> Upload:
        """Raises UploadNotFound, also for other tenants' uploads."""
        upload = self.session.scalar(select(Upload).where(Upload.tenant == tenant, Upload.sha256 == sha256))
        if upload is None:
            raise UploadNotFound(f"there is no upload {sha256}")
        return upload


def row_of(tenant: str, decoded: Decoded) -> dict[str, Any]:
    """The columns of an upload's row."""
    described = {"kind": decoded.kind, "width": decoded.width, "height": decoded.height, "size_bytes": len(decoded.data)}
    return {"tenant": tenant, "sha256": decoded.sha256} | described
