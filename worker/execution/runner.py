"""The loop of a worker process: claim the job whose turn it is, execute it, record how it ended.

From claim to result four files lie open: this one, execution/attempt.py (one run of a job), edit/inputs.py (what it builds on
and where it starts) and edit/artifacts.py (what it leaves).
"""

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Self, TypeVar

import torch
from sqlalchemy.orm import Session

from engine.inversion.inversion import Inversion
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
from worker.edit.artifacts import GROUP_SIZE, ArtifactWriter
from worker.edit.engine_setup import choose_device
from worker.edit.inputs import prepare_inversion
from worker.errors import CODES, MODEL_CODES, describe_breakdown, is_device_failure, is_out_of_memory
from worker.execution.attempt import Attempt, AttemptContext
from worker.execution.drain import Drain
from worker.execution.lease import Canceled
from worker.execution.model_cache import ModelCache
from worker.execution.resume_policy import Drained
from worker.retry import SERVER_UNAVAILABLE, retry_while_unavailable
from worker.slots.dynamic_batcher import DynamicBatcher
from worker.slots.memory_budget import MemoryBudget
from worker.slots.slots import Slots, choose_batcher_count

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandedBack:
    """The attempt has ended because its worker ends: another one goes on."""


@dataclass(frozen=True)
class BrokeDown:
    """The attempt has ended by an error that another one may not meet."""

    error: Exception


AttemptEnd = AttemptOutcome | HandedBack | BrokeDown


class Runner:
    """Runs the jobs of one process: one after another, or several of one model at once."""

    def __init__(
        self, settings: Settings, sessions: Sessions, storage: Storage, queue: Broker, drain: Drain | None = None, *,
        models: ModelCache | None = None, clock: Callable[[], float] = time.monotonic,
        make_writer: Callable[..., ArtifactWriter] = ArtifactWriter, make_inversion: Callable[..., Inversion] = prepare_inversion,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        """Claim nothing yet.

        Args:
            drain: tells when the process has to end.
            models: a cache of models; default: one on the device and of the size that the settings name.
            clock: seconds that count for a job's run_timeout_s and for the time between two saved states.
            make_writer: what turns steps into artifacts.
            make_inversion: what prepares the inversion of a photo, like `prepare_inversion`.
            exit_process: ends this process with an exit code, from whatever thread.
        """
        self.settings = settings
        self.drain = drain or Drain()
        self.sessions = sessions
        self.storage = storage
        self.queue = queue
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.models = models or ModelCache(choose_device(settings.device), settings.model_cache_bytes)
        self.exit_process = exit_process
        self.context = AttemptContext(
            settings=settings, sessions=sessions, storage=storage, models=self.models, drain=self.drain, clock=clock,
            make_writer=make_writer, prepare_inversion=make_inversion,
        )  # fmt: skip

    @classmethod
    def from_settings(cls, settings: Settings, drain: Drain) -> Self:
        """Return a runner with clients of its own."""
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds: not under a lease
        sessions = make_sessions(settings.database_url, connections=MAX_CONNECTIONS + 2 * settings.slots)
        storage = Storage.from_settings(settings)
        return cls(settings, sessions, storage, Broker(settings.redis_url), drain)

    def run_next(self) -> None:
        """Run the job whose turn it is, if there is one.

        While the database is away this waits. The broker keeps the messages behind this one in the meantime, so that no worker is
        idle when the database is back, not even without a reconciler.
        """
        if self.drain.requested:
            self.sign_off()
            return
        try:
            job = self.wait_for_database(self.claim_job)
            if job is None:
                return
            if job.together:
                self.process_together(job)
            else:
                self.process_job(job)
            self.wait_for_database(self.report_idle)
        except SERVER_UNAVAILABLE:  # while a worker waits that is asked to end
            self.sign_off()

    def wait_for_database(self, action: Callable[[], Result]) -> Result:
        """Repeat a transaction until the database answers. Raises SERVER_UNAVAILABLE once this worker is asked to end."""
        return retry_while_unavailable(action, math.inf, lambda: self.drain.requested)

    def claim_job(self) -> Job | None:
        """Return the job whose turn it is, now this worker's; None when nothing waits."""
        with self.sessions.begin() as session:
            job = claim(session, self.claimer())
            if job is not None:
                report_status(session, self.status(job))
        return job

    def process_job(self, job: Job, batcher: DynamicBatcher | None = None) -> None:
        """Execute a claimed job and record how that ended; drop it if another attempt owns it by now.

        When a server is away for long the lease expires.

        Args:
            batcher: makes the steps of jobs that run at once; None: the job runs alone.
        """
        logger.info("job %s attempt %d begins", job.id, job.attempt)
        try:
            self.record_end(job, self.execute_job(job, batcher))
        except LeaseLost as error:
            logger.warning("dropped: %s", error)
        except SERVER_UNAVAILABLE as error:
            logger.warning("job %s is left to its lease: %s", job.id, str(error).splitlines()[0])

    def execute_job(self, job: Job, batcher: DynamicBatcher | None = None) -> AttemptEnd:
        """Run an attempt and return how it ended. Beside others no attempt is run twice: the next one runs alone.

        Raises:
            LeaseLost: another attempt owns the job.
            StorageUnavailable, OperationalError: a server was away for longer than a job waits.
        """
        try:
            stop_reason = self.run_attempt_twice(job) if batcher is None else self.run_attempt(job, batcher, GROUP_SIZE)
        except (LeaseLost, *SERVER_UNAVAILABLE):
            raise
        except Exception as error:
            return self.end_of_attempt(job, error, alone=batcher is None)
        return AttemptOutcome(state=JobState.SUCCEEDED, stop_reason=stop_reason)

    def run_attempt_twice(self, job: Job) -> str | None:
        """Run an attempt; if it lacks memory, once more with nothing else in memory and one frame at a time."""
        try:
            return self.run_attempt(job, None, GROUP_SIZE)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("job %s: once more, with less memory: %s", job.id, error)
        self.models.clear()  # not before the error is gone, whose traceback keeps tensors in memory
        return self.run_attempt(self.reread_job(job), None, 1)

    def run_attempt(self, job: Job, batcher: DynamicBatcher | None, group_size: int) -> str | None:
        """Return the stop reason of a job's drag; all other ends rise."""
        return Attempt(job, self.context, batcher=batcher, group_size=group_size).run()

    def reread_job(self, job: Job) -> Job:
        """Return the job's row as it is now. Raises LeaseLost if another attempt owns it."""
        with self.sessions() as session:
            now = session.get(Job, job.id)
        if now is None or now.attempt != job.attempt:
            raise lease_lost(job.id, job.attempt)
        return now

    def end_of_attempt(self, job: Job, error: Exception, alone: bool) -> AttemptEnd:
        """Return the end that an attempt's error stands for."""
        if isinstance(error, Canceled):
            return AttemptOutcome(state=JobState.CANCELED)
        if isinstance(error, Drained):
            return HandedBack()
        if isinstance(error, tuple(CODES)):
            if CODES[type(error)] in MODEL_CODES:  # the error, which clients see, does not say where the models lie
                logger.error("job %s: in %s: %s", job.id, self.settings.checkpoints, error)
            return AttemptOutcome(state=JobState.FAILED, error_code=CODES[type(error)], error_message=str(error))
        if alone and is_out_of_memory(error):
            message = f"the job needs more memory than the worker has: {error}"
            return AttemptOutcome(state=JobState.FAILED, error_code=ErrorCode.OUT_OF_MEMORY, error_message=message)
        logger.error("job %s attempt %d broke down", job.id, job.attempt, exc_info=error)
        return BrokeDown(error)

    def record_end(self, job: Job, end: AttemptEnd) -> None:
        """Record how an attempt ended. Raises LeaseLost."""
        match end:
            case AttemptOutcome():
                self.finish(job, end)
            case HandedBack():
                self.hand_back(job)
            case BrokeDown():
                self.release(job, end.error)

    def finish(self, job: Job, outcome: AttemptOutcome) -> None:
        """Record the outcome, and delete the resume state that nobody needs now. Raises LeaseLost."""
        states = self.write(lambda session: attempts.finish(session, job.id, job.attempt, outcome))
        with suppress(StorageUnavailable):  # the job is tidied later
            self.storage.remove(states)
        logger.info("job %s attempt %d ends: %s", job.id, job.attempt, outcome.error_message or outcome.state)

    def hand_back(self, job: Job) -> None:
        """Give the job to another worker at once. Raises LeaseLost."""
        self.write(lambda session: attempts.hand_back(session, job.id, job.attempt))
        self.queue.send_wake_up(job.pool)
        logger.info("job %s attempt %d handed back: the worker ends", job.id, job.attempt)

    def release(self, job: Job, error: Exception) -> None:
        """Give up the attempt at once; end the process if its device is broken. Raises LeaseLost."""
        reason = describe_breakdown(error)
        self.write(
            lambda session: attempts.release(session, job.id, job.attempt, reason, RetryPolicy.from_settings(self.settings))
        )
        if is_device_failure(error):
            logger.error("the device is of no more use to this process, which ends")
            self.exit_process(1)  # Celery forks another

    def write(self, action: Callable[[Session], Result]) -> Result:
        """Run the transaction at an attempt's end; wait for a database that is away for as long as the lease may last."""

        def transaction() -> Result:
            with self.sessions.begin() as session:
                return action(session)

        return retry_while_unavailable(transaction, self.settings.lease_s)

    def process_together(self, first: Job) -> None:
        """Process a job, and others of its model beside it, each in a thread of its own."""
        budget = MemoryBudget(self.models.device)
        slots = Slots(
            self.settings.slots, partial(self.claim_another, first.model), self.process_job, lambda: self.drain.requested,
            fits=budget.fits, batchers=choose_batcher_count(self.models.device, torch.get_num_threads()),
        )  # fmt: skip
        slots.run(first)

    def claim_another(self, model: str) -> Job | None:
        """Return one more job of the model that runs already; None also when another model's turn has come."""
        with self.sessions.begin() as session:
            return try_to_claim(session, replace(self.claimer(), warm=[model], only=model))

    def claimer(self) -> Claimer:
        """Return who claims."""
        settings = self.settings
        return Claimer(
            worker=self.name, lease=timedelta(seconds=settings.lease_s), pool=settings.pool, warm=self.models.names(),
            together=settings.slots > 1,
        )  # fmt: skip

    def status(self, job: Job | None = None) -> WorkerStatus:
        """Return what the table of workers says of this one."""
        job_id = None if job is None else job.id
        return WorkerStatus(name=self.name, pool=self.settings.pool, models=self.models.names(), job_id=job_id)

    def report_status(self) -> None:
        """Write that this worker runs no job."""
        with self.sessions.begin() as session:
            report_status(session, self.status())

    def report_idle(self) -> None:
        """Write that this worker runs no job, and send a message while jobs wait: one may have been lost."""
        self.report_status()
        self.wake_for_waiting_jobs()

    def sign_on(self) -> None:
        """Write that there is one more worker; all that it imports is in memory by then."""
        try:
            self.report_status()
        except SERVER_UNAVAILABLE as error:
            logger.warning("the database does not know of this worker yet: %s", str(error).splitlines()[0])

    def sign_off(self) -> None:
        """Write that there is one worker less, and pass its message on to another one."""
        self.queue.send_wake_up(self.settings.pool)
        try:
            with self.sessions.begin() as session:
                remove_worker(session, self.name)
        except SERVER_UNAVAILABLE as error:
            logger.warning("the database does not know yet that this worker ends: %s", str(error).splitlines()[0])

    def wake_for_waiting_jobs(self) -> None:
        """Send a message while jobs wait that may run."""
        with self.sessions() as session:
            waiting = has_claimable(session, self.settings.pool)
        if waiting:
            self.queue.send_wake_up(self.settings.pool)
