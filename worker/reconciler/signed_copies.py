"""Signed copies of the results of jobs that succeeded; the originals stay as they are.

Any number of signers may run. Each try is counted before it begins. A job's row is locked while its copies are stored and
recorded, so that no other process signs it, deletes its new objects as leftovers, or deletes the job without them.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from engine.media.provenance import DigitalSourceType
from jobs.database import Sessions
from jobs.errors import ArtifactNotFound, ObjectMissing, StorageUnavailable
from jobs.queue import jobs as job_rows
from jobs.storage import artifacts
from jobs.storage.artifacts import StoredObject
from jobs.storage.objects import Storage, artifact_key, upload_key
from jobs.storage.signed_copies import (
    FOLDER,
    MAX_TRIES,
    add_copies,
    count_try,
    finish,
    list_uncopied,
    list_unsigned,
    lock_unsigned,
)
from jobs.tables import Artifact, Job
from worker.reconciler.c2pa import C2paSigner, Origin, Unsignable

CHUNK_ROWS = 100  # jobs signed at once
MAX_SIGNING_S = 20.0  # after which no other job is begun
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SigningResult:
    """What was signed at once."""

    jobs: int = 0  # that have all their copies now
    copies: int = 0
    unsignable: int = 0  # files that cannot be signed


class ResultSigner:
    """The maker of signed copies."""

    def __init__(self, sessions: Sessions, storage: Storage, signer: C2paSigner) -> None:
        self.sessions = sessions
        self.storage = storage
        self.signer = signer

    def sign(self) -> SigningResult:
        """Sign the results that wait. Raises OperationalError; the next call does what was not done."""
        if self.signer.expired:
            logger.error("nothing is signed: the certificate was valid until %s", self.signer.valid_until)
            return SigningResult()
        with self.sessions() as session:
            waiting = list_unsigned(session, CHUNK_ROWS)
        deadline, done = time.monotonic() + MAX_SIGNING_S, []
        for job_id in waiting:
            if time.monotonic() > deadline:
                break
            if self.count_try(job_id):
                done.append(self.sign_or_uncount(job_id))
        return SigningResult(**{name: sum(getattr(result, name) for result in done) for name in vars(SigningResult())})

    def count_try(self, job_id: UUID) -> bool:
        """Count a try; return whether it may be made now."""
        with self.sessions.begin() as session:
            job = lock_unsigned(session, job_id)
            if job is None:
                return False
            if not (allowed := count_try(job)):
                logger.error("job %s: no more copies are signed, %d tries failed", job_id, MAX_TRIES)
            return allowed

    def sign_or_uncount(self, job_id: UUID) -> SigningResult:
        """Sign one job. A store that is away uses up no try, and holds up no other job."""
        try:
            with self.sessions.begin() as session:
                job = lock_unsigned(session, job_id)
                return SigningResult() if job is None else self.sign_job(session, job)
        except StorageUnavailable as error:
            logger.warning("job %s waits for its signed copies: %s", job_id, error)
        with self.sessions.begin() as session:
            if (job := lock_unsigned(session, job_id)) is not None:
                job.sign_tries -= 1
        return SigningResult()

    def sign_job(self, session: Session, job: Job) -> SigningResult:
        """Sign, store and record the results without a copy. Raises StorageUnavailable."""
        originals = list_uncopied(session, job)
        try:
            origin = self.read_origin(session, job)
        except (Unsignable, ObjectMissing, ArtifactNotFound) as error:
            logger.error("job %s cannot be signed: %s", job.id, error)
            return SigningResult(unsignable=len(originals))
        copies = [copy for original in originals if (copy := self.copy_or_skip(job, original, origin)) is not None]
        add_copies(session, job, copies)
        if len(copies) == len(originals):
            finish(job)
        return SigningResult(jobs=int(len(copies) == len(originals)), copies=len(copies), unsignable=len(originals) - len(copies))

    def read_origin(self, session: Session, job: Job) -> Origin:
        """Read how a job's pictures came about. Raises Unsignable, ObjectMissing, ArtifactNotFound, StorageUnavailable."""
        source_type = read_source_type(self.storage.get(artifacts.get(session, job, "manifest.json").key))
        sha256 = job_rows.find_photo(session, job) if source_type == DigitalSourceType.EDITED else None
        return Origin(source_type=source_type, photo=None if sha256 is None else self.read_photo(job, sha256))

    def read_photo(self, job: Job, sha256: str) -> bytes | None:
        """Read an uploaded photo; None when the client has deleted it."""
        try:
            return self.storage.get(upload_key(job.tenant, sha256))
        except ObjectMissing:
            return None

    def copy_or_skip(self, job: Job, original: Artifact, origin: Origin) -> StoredObject | None:
        """Copy a file; None when it cannot be signed, because one file must not hold up the others. Raises StorageUnavailable."""
        try:
            return self.copy(job, original, origin)
        except (Unsignable, ObjectMissing) as error:
            logger.error("job %s: %s has no signed copy: %s", job.id, original.name, error)
            return None

    def copy(self, job: Job, original: Artifact, origin: Origin) -> StoredObject:
        """Store a signed copy. Its key contains its hash, so that of two copies of one file neither replaces the other."""
        signed = self.signer.sign(self.storage.get(original.key), original.name, original.media_type, origin)
        sha256 = hashlib.sha256(signed).hexdigest()
        key = artifact_key(job.tenant, job.id, job.attempt, f"{FOLDER}{sha256}/{original.name}")
        self.storage.put(key, signed, original.media_type)
        return StoredObject(
            name=FOLDER + original.name, key=key, media_type=original.media_type, size_bytes=len(signed), sha256=sha256
        )


def read_source_type(manifest: bytes) -> DigitalSourceType:
    """Read from a job's manifest.json how its pictures came about. Raises Unsignable."""
    try:
        return DigitalSourceType(json.loads(manifest)["digital_source_type"])
    except (ValueError, KeyError) as error:
        raise Unsignable("its manifest.json does not say how the pictures came about") from error
