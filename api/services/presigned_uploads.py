"""Presigned uploads: announcing a file that goes straight to the store, and completing it."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends

from api.auth import Submitter
from api.dependencies import SessionsDep, StorageDep, UnitOfWorkDep
from api.schemas.uploads import AnnouncedFile, PresignedView
from api.services.uploads import UploadService, UploadServiceDep
from api.unit_of_work import UnitOfWork
from jobs.database import Sessions
from jobs.errors import NotUploaded
from jobs.storage import presigned
from jobs.storage import uploads as upload_rows
from jobs.storage.decoding import Decoded
from jobs.storage.objects import Storage, raw_key
from jobs.tables import PresignedUpload, Upload
from jobs.tenants.quotas import check_announced_upload_quota


@dataclass(frozen=True)
class PresignedUploadService:
    """The presigned uploads of one tenant in one request."""

    tenant: str
    unit_of_work: UnitOfWork
    storage: Storage
    sessions: Sessions
    uploads: UploadService

    def announce(self, file: AnnouncedFile) -> PresignedView:
        """Return a link to which the client sends the file. Raises QuotaExceeded."""
        session = self.unit_of_work.session
        check_announced_upload_quota(session, self.tenant, file.size_bytes, self.uploads.quotas)
        lifetime = self.storage.link_lifetime
        announced = presigned.announce(session, self.tenant, file.sha256, file.size_bytes, file.kind, lifetime)
        headers = presigned.headers(announced)
        url = self.storage.make_upload_url(raw_key(self.tenant, announced.id), headers)
        return PresignedView(id=announced.id, url=url, headers=headers, expires_at=announced.expires_at)

    def complete(self, presigned_id: UUID) -> Upload:
        """Return the upload that an announced file has become; asked again it is the same.

        Raises:
            UploadNotFound, NotUploaded, InvalidJob, DecoderBusy, QuotaExceeded, StorageUnavailable.
        """
        announced, file = self.read(presigned_id)
        if file is None:
            return upload_rows.get(self.unit_of_work.session, self.tenant, str(announced.upload))
        upload = self.uploads.keep(file)
        presigned.set_upload(self.unit_of_work.session, announced, upload.sha256)
        self.unit_of_work.objects_to_delete.append(raw_key(self.tenant, presigned_id))
        return upload

    def read(self, presigned_id: UUID) -> tuple[PresignedUpload, Decoded | None]:
        """Decode the file unless it is completed already. No transaction is open meanwhile."""
        announced = self.find(presigned_id)
        if announced.upload is not None:
            return announced, None
        try:
            return announced, presigned.read(announced, self.storage)
        except NotUploaded:
            announced = self.find(presigned_id)
            if announced.upload is None:
                raise
            return announced, None  # a second request has completed it in the meantime

    def find(self, presigned_id: UUID) -> PresignedUpload:
        """Read the row in a session of its own. Raises UploadNotFound."""
        with self.sessions() as session:
            return presigned.get(session, self.tenant, presigned_id)


async def presigned_upload_service(
    principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep, sessions: SessionsDep, uploads: UploadServiceDep
) -> PresignedUploadService:
    return PresignedUploadService(principal.tenant, unit_of_work, storage, sessions, uploads)


PresignedUploadServiceDep = Annotated[PresignedUploadService, Depends(presigned_upload_service)]
