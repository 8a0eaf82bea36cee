"""How attempts of a job hand on their work: what an earlier one left, and when this one saves its own state."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.database import Sessions
from jobs.errors import ObjectMissing
from jobs.queue import attempts
from jobs.queue.attempts import ResumePoint
from jobs.settings import Settings
from jobs.storage.artifacts import StoredObject
from jobs.tables import Job
from worker.edit.artifacts import TUNED
from worker.edit.inputs import InputFetcher
from worker.edit.resume_state import ResumeState, ResumeStateUnreadable
from worker.edit.uploader import Uploader
from worker.execution.lease import Lease
from worker.retry import retry_while_unavailable

logger = logging.getLogger(__name__)


class Drained(Exception):
    """The worker has to end before the job can."""


@dataclass(frozen=True, kw_only=True)
class EarlierWork:
    """What an earlier attempt left."""

    state: ResumeState | None = None  # None: this attempt starts from the beginning
    stored: Sequence[StoredObject] = ()  # artifacts, which are this attempt's now


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What an attempt leaves at one moment."""

    state: ResumeState
    kept_names: Sequence[str] = ()  # of artifacts that the next attempt need not make again


def load_earlier_work(job: Job, made_by: str, fetcher: InputFetcher, sessions: Sessions) -> EarlierWork:
    """Return what an earlier attempt left, with its artifacts made this one's; nothing where that is of no use.

    Args:
        made_by: model and version whose states can be gone on from.
    """
    if job.resume_point is None:
        return EarlierWork()
    point = ResumePoint(**job.resume_point)
    try:
        state = ResumeState.decode(fetcher.fetch_object(point.key), made_by)
    except (ObjectMissing, ResumeStateUnreadable) as error:
        logger.warning("job %s starts from the beginning: its resume state: %s", job.id, error)
        return EarlierWork()

    def adopt() -> list[StoredObject]:
        with sessions.begin() as session:
            return attempts.adopt_artifacts(session, job.id, job.attempt, point.names, point.attempt)

    stored = retry_while_unavailable(adopt, fetcher.patience_s)
    if state.tuned and TUNED not in [kept.name for kept in stored]:
        logger.warning("job %s starts from the beginning: the generator it tuned is gone", job.id)
        return EarlierWork()
    return EarlierWork(state=state, stored=stored)


class ResumePolicy:
    """Decides when an attempt saves its state for the next one, and saves it."""

    def __init__(self, uploader: Uploader, lease: Lease, settings: Settings, clock: Callable[[], float], began: float) -> None:
        """Save nothing yet.

        Args:
            clock: of an attempt's seconds.
            began: when the attempt began, by that clock.
        """
        self.uploader = uploader
        self.lease = lease
        self.settings = settings
        self.clock = clock
        self.saved_at = began

    def is_due(self, phase: str) -> bool:
        """Return whether it is time to save, and what was saved last has arrived. Raises what went wrong in the uploader."""
        self.uploader.check()
        return self.is_overdue(phase) and not self.uploader.saving_state

    def is_overdue(self, phase: str) -> bool:
        """Return whether the last saved state is old enough for another, whether or not it has arrived."""
        every_s = self.settings.tuning_checkpoint_s if phase == "tuning" else self.settings.checkpoint_s
        return self.clock() - self.saved_at >= every_s

    def save(self, snapshot: Snapshot) -> None:
        """Send a snapshot to the store."""
        self.saved_at = self.clock()
        self.uploader.put_resume_state(snapshot.state.encode, snapshot.kept_names)

    @contextmanager
    def saving_when_drained(self, take_snapshot: Callable[[], Snapshot]) -> Iterator[None]:
        """Save where the attempt is, and wait until that is stored, if the block raises Drained."""
        try:
            yield
        except Drained:
            with self.lease.renewed_in_background("upload", self.settings.load_limit_s):
                self.save(take_snapshot())
                self.uploader.wait_until_stored()
            raise
