"""A worker's life: claim the job whose turn it is, run it, say how it ended."""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Self

import torch
from sqlalchemy.orm import Session

from jobs.database import MAX_CONNECTIONS, Sessions, make_sessions
from jobs.errors import ErrorCode, LeaseLost, StorageUnavailable
from jobs.queue import attempts
from jobs.queue.attempts import AttemptOutcome, lease_lost
from jobs.queue.broker import Broker
from jobs.queue.claims import Claimer, claim, has_claimable, try_to_claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.queue.workers import WorkerStatus, remove_worker, report_status
from jobs.settings import Settings
from jobs.states import JobState
from jobs.storage.objects import Storage
from jobs.tables import Job
from worker.edit.drag import choose_device
from worker.errors import CODES, is_device_failure, is_out_of_memory
from worker.execution.attempt import Attempt, Canceled, Drained, Tools
from worker.execution.drain import Drain
from worker.execution.model_cache import ModelCache
from worker.retry import SERVER_UNAVAILABLE, retry_while_unavailable
from worker.slots.dynamic_batcher import DynamicBatcher
from worker.slots.memory_budget import MemoryBudget
from worker.slots.slots import Slots, meetings_on

logger = logging.getLogger(__name__)


class Runner:
    """Runs one job after another in one process, or several at once."""

    def __init__(
        self, settings: Settings, sessions: Sessions, storage: Storage, queue: Broker, drain: Drain | None = None
    ) -> None:
        self.settings = settings
        self.draining = drain or Drain()
        self.sessions = sessions
        self.storage = storage
        self.queue = queue
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.models = ModelCache(choose_device(settings.device), settings.model_cache_bytes)

    @classmethod
    def from_settings(cls, settings: Settings, drain: Drain) -> Self:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds: not under a lease
        sessions = make_sessions(settings.database_url, connections=MAX_CONNECTIONS + 2 * settings.slots)
        storage = Storage.from_settings(settings)
        return cls(settings, sessions, storage, Broker(settings.redis_url), drain)

    def arrive(self) -> None:
        """Say that there is one more worker; all that it imports is in memory now."""
        try:
            self.say(self.standing())
        except SERVER_UNAVAILABLE as error:
            logger.warning("the database does not know of this worker yet: %s", error)

    def run_next(self) -> None:
        """Run the job whose turn it is, if there is one."""
        if self.draining.asked:
            self.leave()
            return
        job = self.claim()
        if job is None:
            return
        if job.together:
            self.run_beside(job)
        else:
            self.run_or_drop(job)
        self.say(self.standing())
        if self.waiting():
            self.queue.send_wake_up(self.settings.pool)  # one message may have been lost; those that wait are worth another

    def leave(self) -> None:
        """Let the message go to somebody who stays."""
        self.queue.send_wake_up(self.settings.pool)
        with self.sessions.begin() as session:
            remove_worker(session, self.name)

    def claim(self) -> Job | None:
        with self.sessions.begin() as session:
            job = claim(session, self.claimer())
            if job is not None:
                report_status(session, self.standing(job))
        return job

    def claim_beside(self, model: str) -> Job | None:
        """One more job of the model that it runs already; None also when another's turn has come."""
        with self.sessions.begin() as session:
            return try_to_claim(session, replace(self.claimer(), warm=[model], only=model))

    def claimer(self) -> Claimer:
        settings = self.settings
        return Claimer(
            worker=self.name, lease=timedelta(seconds=settings.lease_s), pool=settings.pool, warm=self.models.names(),
            together=settings.slots > 1,
        )  # fmt: skip

    def run_beside(self, first: Job) -> None:
        """Run a job and others of its model beside it."""

        def run(job: Job, meeting: DynamicBatcher) -> None:
            try:
                self.run_or_drop(job, meeting)
            except SERVER_UNAVAILABLE as error:
                logger.warning("job %s is left to its lease: %s", job.id, error)

        more, ending, room = (
            partial(self.claim_beside, first.model),
            lambda: self.draining.asked,
            MemoryBudget(self.models.device),
        )
        Slots(self.settings.slots, more, run, ending, room.fits, meetings_on(self.models.device)).run(first)

    def run_or_drop(self, job: Job, meeting: DynamicBatcher | None = None) -> None:
        try:
            self.run(job, meeting)
        except LeaseLost as error:
            logger.warning("dropped: %s", error)

    def standing(self, job: Job | None = None) -> WorkerStatus:
        job_id = None if job is None else job.id
        return WorkerStatus(name=self.name, pool=self.settings.pool, models=self.models.names(), job_id=job_id)

    def say(self, standing: WorkerStatus) -> None:
        with self.sessions.begin() as session:
            report_status(session, standing)

    def waiting(self) -> bool:
        with self.sessions() as session:
            return has_claimable(session, self.settings.pool)

    def run(self, job: Job, meeting: DynamicBatcher | None = None) -> None:
        """Carry a claimed job to its end, beside those that come to the meeting.

        When a server is away for long the error rises and the lease expires; an attempt that broke down otherwise is
        given up at once.

        Raises:
            LeaseLost: another attempt owns it now.
        """
        logger.info("job %s attempt %d begins", job.id, job.attempt)
        try:
            outcome = self.outcome(job, meeting)
        except (LeaseLost, *SERVER_UNAVAILABLE):
            raise
        except Drained:
            self.hand_back(job)
            return
        except Exception as error:
            logger.exception("job %s attempt %d broke down", job.id, job.attempt)
            reason = f"{type(error).__name__}: {error}"
            self.write(
                lambda session: attempts.release(session, job.id, job.attempt, reason, RetryPolicy.from_settings(self.settings))
            )
            if is_device_failure(error):
                logger.error("the device is of no more use to this process, which ends")
                os._exit(1)  # Celery forks another
            return
        self.finish(job, outcome)
        logger.info("job %s attempt %d ends: %s", job.id, job.attempt, outcome.error_message or outcome.state)

    def finish(self, job: Job, outcome: AttemptOutcome) -> None:
        """Record the outcome, and delete the checkpoint that nobody needs now. Raises LeaseLost."""
        checkpoint: list[str] = []

        def end(session: Session) -> None:
            checkpoint[:] = attempts.finish(session, job.id, job.attempt, outcome)

        self.write(end)
        with suppress(StorageUnavailable):  # the job is tidied later
            self.storage.remove(checkpoint)

    def hand_back(self, job: Job) -> None:
        """Give the job to another worker at once. Raises LeaseLost."""
        self.write(lambda session: attempts.hand_back(session, job.id, job.attempt))
        self.queue.send_wake_up(job.pool)
        logger.info("job %s attempt %d handed back: the worker ends", job.id, job.attempt)

    def write(self, action: Callable[[Session], object]) -> None:
        """One transaction at an attempt's end; a database that is away is waited for as long as the lease may last."""

        def transaction() -> None:
            with self.sessions.begin() as session:
                action(session)

        retry_while_unavailable(transaction, self.settings.lease_s)

    def outcome(self, job: Job, meeting: DynamicBatcher | None) -> AttemptOutcome:
        """Run the job; its known ways to end are outcomes, all others errors."""
        try:
            return AttemptOutcome(state=JobState.SUCCEEDED, stop_reason=self.edit(job, meeting))
        except Canceled:
            return AttemptOutcome(state=JobState.CANCELED)
        except tuple(CODES) as error:
            return AttemptOutcome(state=JobState.FAILED, error_code=CODES[type(error)], error_message=str(error))
        except Exception as error:
            if meeting is not None or not is_out_of_memory(error):
                raise
            message = f"the job needs more memory than the worker has: {error}"
            return AttemptOutcome(state=JobState.FAILED, error_code=ErrorCode.OUT_OF_MEMORY, error_message=message)

    def edit(self, job: Job, meeting: DynamicBatcher | None) -> str | None:
        """Short of memory, once more with nothing else in it and one frame at a time; beside others, later and alone."""
        tools = Tools(
            settings=self.settings, sessions=self.sessions, storage=self.storage, models=self.models, draining=self.draining,
            meeting=meeting,
        )  # fmt: skip
        try:
            return Attempt(job, tools).run()
        except Exception as error:
            if meeting is not None or not is_out_of_memory(error):
                raise
            logger.warning("job %s: once more, with less memory: %s", job.id, error)
        self.models.clear()
        with self.sessions() as session:
            now = session.get_one(Job, job.id)
        if now.attempt != job.attempt:
            raise lease_lost(job.id, job.attempt)
        return Attempt(now, tools, group=1).run()
