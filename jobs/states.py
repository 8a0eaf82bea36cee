"""The six states of a job and the legal transitions between them."""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # an attempt holds the lease
    SUCCEEDED = "succeeded"  # the artifacts are complete
    FAILED = "failed"  # error_code says why
    CANCELED = "canceled"  # a client asked for it
    EXPIRED = "expired"  # start_before passed while it was queued

    @property
    def terminal(self) -> bool:
        """Whether a job in this state never changes its state again."""
        return not TRANSITIONS[self]


class Ending(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the job with it: trying again would not help
    CANCELED = "canceled"
    BROKE_DOWN = "broke down"  # an error that another attempt may not meet
    WENT_SILENT = "went silent"  # its lease ran out
    HANDED_BACK = "handed back"  # its worker had to end


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


def source_states(target: JobState) -> list[JobState]:
    """Return the states from which a job may change to the target state."""
    return [source for source, targets in TRANSITIONS.items() if target in targets]
