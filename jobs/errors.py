"""Errors of callers and conflicts between them. Each class has a stable code that clients may test for.

JobError
├── InvalidJob          invalid_job           the request cannot become a job; lists every problem
├── JobNotFound         job_not_found         no such job for this tenant
├── ArtifactNotFound    artifact_not_found    no such artifact (yet)
├── UploadNotFound      upload_not_found      no such upload of this tenant
├── NotUploaded         not_uploaded          the store has not got the file yet that was announced
├── UploadInUse         upload_in_use         a job needs the upload that has not ended
├── ParentUnusable      parent_unusable       the job to go on from has no result, or is of another model
├── ModelNotFound       model_not_found       no such model in the manifest
├── ManifestInvalid     manifest_invalid      manifest.toml is missing or not what a manifest is
├── DecoderBusy         decoder_busy          too many pictures are being read at once
├── Busy                busy                  others of the client's requests are in the way; repeat it
├── JobActive           job_active            the job has not ended
├── IdTaken             id_taken              another job of the tenant has the id that a client chose
├── BatchNotFound       batch_not_found       no such batch of this tenant
├── WebhookNotFound     webhook_not_found     no such webhook, or delivery, of this tenant
├── InvalidWebhook      invalid_webhook       nothing may be sent to its URL
├── WebhookDisabled     webhook_disabled      the webhook is sent nothing until it is enabled again
├── KeyReused           key_reused            the idempotency key came with another request before
├── KeyInUse            key_in_use            a request with the same idempotency key is being answered
├── Unauthorized        unauthorized          no key, or one that is not valid
├── KeyNotFound         key_not_found         there is no such API key
├── Forbidden           forbidden             the key lacks a scope
├── RateLimited         rate_limited          more requests a minute than the key may make
├── QuotaExceeded       quota_exceeded        more than the tenant may have at a time
├── LeaseLost           lease_lost            another attempt owns the job, or it has ended
├── ObjectMissing       object_missing        the store has no such object
└── StorageUnavailable  storage_unavailable   the store does not answer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a job failed; the whole set."""

    CHECKPOINT_MISSING = "checkpoint_missing"
    CHECKPOINT_DAMAGED = "checkpoint_damaged"
    MANIFEST_INVALID = "manifest_invalid"
    INVALID_EDIT = "invalid_edit"
    INPUT_MISSING = "input_missing"
    DIVERGED = "diverged"
    INVERSION_DIVERGED = "inversion_diverged"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"

    @property
    def retryable(self) -> bool:
        """Whether the same job might succeed later without being changed."""
        return self not in (ErrorCode.INVALID_EDIT, ErrorCode.DIVERGED, ErrorCode.INVERSION_DIVERGED, ErrorCode.INPUT_MISSING)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a request."""

    field: str  # path in the request, such as points[0].target
    message: str  # what is wrong, with the limit


class JobError(Exception):
    """Base of the errors that an API answer or a command reports to its caller."""

    code = "job_error"


class InvalidJob(JobError):
    """A request that cannot become a job, with every problem that was found in it."""

    code = "invalid_job"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in self.problems))


class JobNotFound(JobError):
    code = "job_not_found"


class ArtifactNotFound(JobError):
    code = "artifact_not_found"


class UploadNotFound(JobError):
    code = "upload_not_found"


class NotUploaded(JobError):
    code = "not_uploaded"


class UploadInUse(JobError):
    code = "upload_in_use"


class ParentUnusable(JobError):
    code = "parent_unusable"


class ModelNotFound(JobError):
    code = "model_not_found"


class ManifestInvalid(JobError):
    code = "manifest_invalid"


class DecoderBusy(JobError):
    code = "decoder_busy"


class Busy(JobError):
    code = "busy"


class JobActive(JobError):
    code = "job_active"


class IdTaken(JobError):
    code = "id_taken"


class BatchNotFound(JobError):
    code = "batch_not_found"


class WebhookNotFound(JobError):
    code = "webhook_not_found"


class InvalidWebhook(InvalidJob):
    code = "invalid_webhook"


class WebhookDisabled(JobError):
    code = "webhook_disabled"


class KeyReused(JobError):
    code = "key_reused"


class KeyInUse(JobError):
    code = "key_in_use"


class Unauthorized(JobError):
    code = "unauthorized"


class KeyNotFound(JobError):
    code = "key_not_found"


class Forbidden(JobError):
    code = "forbidden"


class RateLimited(JobError):
    code = "rate_limited"


class QuotaExceeded(JobError):
    code = "quota_exceeded"


class LeaseLost(JobError):
    code = "lease_lost"


class ObjectMissing(JobError):
    code = "object_missing"


class StorageUnavailable(JobError):
    code = "storage_unavailable"
