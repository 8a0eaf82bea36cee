"""The attacks, by what they aim at. Importing this package fills the list."""

from tests.abuse.attack import ATTACKS
from tests.abuse.attacks import (
    batches,
    bodies,
    connections,
    credentials,
    files,
    multipart,
    outages,
    protocol,
    reads,
    rows,
    webhooks,
)

__all__ = [
    "ATTACKS", "batches", "bodies", "connections", "credentials", "files", "multipart", "outages", "protocol", "reads", "rows",
    "webhooks",
]  # fmt: skip
