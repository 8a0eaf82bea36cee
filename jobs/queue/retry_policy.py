"""How often a job may be tried, and how long it rests in between."""

from dataclasses import dataclass

from jobs.backoff import Backoff


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How failures of a job are answered."""

    max_attempts: int  # failures that end a job
    delay_s: float  # after the first failure; doubled by each further one
    delay_limit_s: float

    @property
    def backoff(self) -> Backoff:
        """The rest between two attempts of a job."""
        return Backoff(first_s=self.delay_s, limit_s=self.delay_limit_s)
