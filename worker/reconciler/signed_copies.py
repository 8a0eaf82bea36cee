"""Makes signed copies of what jobs drew, after they have succeeded; the originals stay as they are.

Any number may run. Each try is counted before it begins; a job's row is locked while its copies are stored and recorded,
so that nobody else signs it, takes its new objects for leftovers, or deletes it without them.
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
from jobs.queue.repository import JobRepository, StoredObject
from jobs.storage.objects import Storage, artifact_key, upload_key
from jobs.storage.signed_copies import FOLDER, MOST_TRIES, add_copies, count_try, end, take, to_copy, unsigned
from jobs.tables import Artifact, Job
from worker.reconciler.c2pa import C2paSigner, Origin, Unsignable

TOGETHER = 100  # jobs looked at in one go
LOOK_S = 20.0  # after that a look begins no other job
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What one look made."""

    jobs: int = 0  # that have all their copies
    copies: int = 0
    unsignable: int = 0  # files


class SignedCopies:
    def __init__(self, sessions: Sessions, storage: Storage, credentials: C2paSigner) -> None:
        self.sessions = sessions
        self.storage = storage
        self.credentials = credentials

    def sign(self) -> Signed:
        """Look once. Raises OperationalError; what was not done is done next time."""
        if self.credentials.expired:
            logger.error("nothing is signed: the certificate was valid until %s", self.credentials.valid_until)
            return Signed()
        with self.sessions() as session:
            waiting = unsigned(session, TOGETHER)
        until, done = time.monotonic() + LOOK_S, []
        for job_id in waiting:
            if time.monotonic() > until:
                break
            if self.count_try(job_id):
                done.append(self.try_job(job_id))
        return Signed(**{name: sum(getattr(one, name) for one in done) for name in vars(Signed())})

    def count_try(self, job_id: UUID) -> bool:
        """Whether a try may be made now."""
        with self.sessions.begin() as session:
            job = take(session, job_id)
            if job is None:
                return False
            if not (left := count_try(job)):
                logger.error("job %s: no more copies are signed, %d tries failed", job_id, MOST_TRIES)
            return left

    def try_job(self, job_id: UUID) -> Signed:
        """A store that is away costs no try, and holds up no other job."""
        try:
            with self.sessions.begin() as session:
                job = take(session, job_id)
                return Signed() if job is None else self.sign_job(session, job)
        except StorageUnavailable as error:
            logger.warning("job %s waits for its signed copies: %s", job_id, error)
        with self.sessions.begin() as session:
            if (job := take(session, job_id)) is not None:
                job.sign_tries -= 1
        return Signed()

    def sign_job(self, session: Session, job: Job) -> Signed:
        """Sign, store and record what has no copy yet. Raises StorageUnavailable."""
        originals = to_copy(session, job)
        try:
            origin = self.origin(session, job)
        except (Unsignable, ObjectMissing, ArtifactNotFound) as error:
            logger.error("job %s cannot be signed: %s", job.id, error)
            return Signed(unsignable=len(originals))
        copies = [copy for original in originals if (copy := self.try_copy(job, original, origin)) is not None]
        add_copies(session, job, copies)
        if len(copies) == len(originals):
            end(job)
        return Signed(jobs=int(len(copies) == len(originals)), copies=len(copies), unsignable=len(originals) - len(copies))

    def origin(self, session: Session, job: Job) -> Origin:
        """Raises Unsignable, ObjectMissing, ArtifactNotFound, StorageUnavailable."""
        jobs = JobRepository(session)
        source_type = source_type_of(self.storage.get(jobs.artifact(job, "manifest.json").key))
        sha256 = jobs.photo_of(job) if source_type == DigitalSourceType.EDITED else None
        return Origin(source_type=source_type, photo=None if sha256 is None else self.photo(job, sha256))

    def photo(self, job: Job, sha256: str) -> bytes | None:
        """None when the client has deleted it."""
        try:
            return self.storage.get(upload_key(job.tenant, sha256))
        except ObjectMissing:
            return None

    def try_copy(self, job: Job, original: Artifact, origin: Origin) -> StoredObject | None:
        """None when it cannot be signed: one file must not hold up the others. Raises StorageUnavailable."""
        try:
            return self.copy(job, original, origin)
        except (Unsignable, ObjectMissing) as error:
            logger.error("job %s: %s has no signed copy: %s", job.id, original.name, error)
            return None

    def copy(self, job: Job, original: Artifact, origin: Origin) -> StoredObject:
        """A signed copy, stored. The key names its content: signing twice makes two files, and neither may replace the other."""
        signed = self.credentials.sign(self.storage.get(original.key), original.name, original.media_type, origin)
        sha256 = hashlib.sha256(signed).hexdigest()
        key = artifact_key(job.tenant, job.id, job.attempt, f"{FOLDER}{sha256}/{original.name}")
        self.storage.put(key, signed, original.media_type)
        return StoredObject(
            name=FOLDER + original.name, key=key, media_type=original.media_type, size_bytes=len(signed), sha256=sha256
        )


def source_type_of(manifest: bytes) -> DigitalSourceType:
    """Of what a job drew, as its manifest.json says. Raises Unsignable."""
    try:
        return DigitalSourceType(json.loads(manifest)["digital_source_type"])
    except (ValueError, KeyError) as error:
        raise Unsignable("its manifest.json does not say how the pictures came about") from error
