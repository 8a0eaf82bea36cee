"""How often a job may be tried, and how long it rests in between."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    max_attempts: int  # failures that end a job
    delay_s: float  # after the first failure; doubled by each further one
    delay_limit_s: float
