"""A worker's runner whose engine only sleeps; leases, progress and uploads are real."""

import time

from benchmarks.synthetic_work import SyntheticWork
from jobs.tables import Job
from worker.edit.artifacts import PendingArtifact
from worker.edit.uploader import Uploader
from worker.execution.lease import Lease, LeaseTimes
from worker.execution.runner import Runner
from worker.slots.dynamic_batcher import DynamicBatcher

OBJECT = bytes(range(256)) * 16  # 4 KiB, as a small frame


class SleepingRunner(Runner):
    """Runs the synthetic work that a job's metadata describes."""

    def run_attempt(self, job: Job, batcher: DynamicBatcher | None, group_size: int) -> str | None:
        """Sleep for as long as the job asks, with its progress reports and artifacts spread over that time."""
        work, settings = SyntheticWork(**job.spec["metadata"]), self.settings
        times = LeaseTimes(lease_s=settings.lease_s, beat_s=settings.beat_s, progress_interval_s=settings.progress_interval_s)
        lease = Lease(self.sessions, job.id, job.attempt, times)
        with Uploader(job, self.storage, self.sessions, patience_s=settings.patience_s) as uploader:
            for step in range(work.steps):
                time.sleep(work.seconds / work.steps)
                lease.report_progress({"phase": "drag", "iteration": step, "max_iterations": work.steps})
                for number in range(step * work.objects // work.steps, (step + 1) * work.objects // work.steps):
                    uploader.put(PendingArtifact(f"frames/{number:05d}.webp", lambda: OBJECT))
            with lease.renewed_in_background("upload", settings.load_limit_s):
                uploader.wait_until_stored()
        return "max_iterations"
