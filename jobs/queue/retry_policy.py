"""How often a job may be tried, and how long it rests in between."""

from dataclasses import dataclass
from typing import Self

from jobs.backoff import Backoff
from jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How failures of a job are answered."""

    max_attempts: int  # failures that end a job
    delay_s: float  # after the first failure; doubled by each further one
    delay_limit_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy of the settings."""
        return cls(max_attempts=settings.max_attempts, delay_s=settings.retry_delay_s, delay_limit_s=settings.retry_delay_limit_s)

    @property
    def backoff(self) -> Backoff:
        """The rest between two attempts of a job."""
        return Backoff(first_s=self.delay_s, limit_s=self.delay_limit_s)
