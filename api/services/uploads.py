"""Keeping uploads: the checks before a decoded file is stored."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from api.auth import Submitter
from api.dependencies import SettingsDep, StorageDep, UnitOfWorkDep
from api.unit_of_work import UnitOfWork
from jobs.storage import uploads
from jobs.storage.decoding import Decoded
from jobs.storage.objects import Storage
from jobs.tables import Upload
from jobs.tenants.quotas import Quotas, check_upload_quota


@dataclass(frozen=True)
class UploadService:
    """The uploads of one tenant in one request."""

    tenant: str
    unit_of_work: UnitOfWork
    storage: Storage
    quotas: Quotas  # of tenants that have none of their own

    def keep(self, file: Decoded) -> Upload:
        """Store a decoded file; the same content again is the same upload. Raises QuotaExceeded, StorageUnavailable."""
        check_upload_quota(self.unit_of_work.session, self.tenant, file.sha256, self.quotas)
        return uploads.add(self.unit_of_work.session, self.tenant, file, self.storage)


async def upload_service(
    principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep, settings: SettingsDep
) -> UploadService:
    return UploadService(principal.tenant, unit_of_work, storage, Quotas.from_settings(settings))


UploadServiceDep = Annotated[UploadService, Depends(upload_service)]
