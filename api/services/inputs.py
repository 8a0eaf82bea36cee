"""The uploads, jobs and webhooks of a tenant that its submissions may refer to."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from uuid import UUID

from api.unit_of_work import UnitOfWork
from jobs.queue import jobs
from jobs.spec.crop_transform import CropTransform
from jobs.spec.mask_cut import sees_any
from jobs.storage import uploads
from jobs.storage.decoding import Decoded, read_outline
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.objects import Storage, upload_key
from jobs.storage.uploads import row_of
from jobs.tables import Job, Upload
from jobs.webhooks import subscriptions as webhooks


@dataclass(frozen=True)
class TenantInputs:
    """What a tenant's submission may refer to. What it uses stays locked until the transaction ends."""

    tenant: str
    unit_of_work: UnitOfWork
    storage: Storage
    posted_photo: Decoded | None = None  # came with the job and is not stored yet

    def get_upload(self, sha256: str) -> Upload:
        """Return an upload. Raises UploadNotFound."""
        if self.posted_photo is not None and sha256 == self.posted_photo.sha256:
            return Upload(**row_of(self.tenant, self.posted_photo))
        return uploads.use(self.unit_of_work.session, self.tenant, sha256)

    def get_outline(self, upload: Upload) -> MaskOutline:
        """Return the outline of a mask. Raises ObjectMissing, StorageUnavailable, DecoderBusy."""
        if upload.outline is not None:
            return MaskOutline.from_bytes(upload.outline)
        outline = read_outline(self.stream(upload), "movable", self.tenant)
        uploads.set_outline(self.unit_of_work.session, self.tenant, upload.sha256, outline.to_bytes())
        return outline

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        """Return whether the model sees any of a mask. Raises ObjectMissing, StorageUnavailable, DecoderBusy."""
        return sees_any(self.stream(upload), crop_transform, self.tenant)

    def stream(self, upload: Upload) -> Iterator[bytes]:
        return self.storage.stream(upload_key(self.tenant, upload.sha256))

    def get_job(self, job_id: UUID) -> Job:
        """Return an earlier job, and lock the photo that its chain began with. Raises JobNotFound, UploadNotFound."""
        job = jobs.get_for_share(self.unit_of_work.session, self.tenant, job_id)
        photo = jobs.find_photo(self.unit_of_work.session, job)
        if photo is not None:
            self.get_upload(photo)
        return job

    def known_webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Return those of the ids that are webhooks of the tenant."""
        return webhooks.find_known_ids(self.unit_of_work.session, self.tenant, ids)
