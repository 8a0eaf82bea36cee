"""The work of a job that computes nothing: it travels in the job's metadata, so no PyTorch is needed to ask for it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SyntheticWork:
    """How long a job takes and how often it writes."""

    seconds: float = 2.0
    steps: int = 20  # progress reports
    objects: int = 10  # artifacts
