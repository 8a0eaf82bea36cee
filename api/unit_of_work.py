"""The transaction of one request, and what follows once it is committed."""

from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from jobs.errors import StorageUnavailable
from jobs.queue.broker import Broker
from jobs.storage.objects import Storage


@dataclass
class UnitOfWork:
    """A transaction that begins with its first statement. The route class ends it; see `api.routing`."""

    session: Session
    broker: Broker
    storage: Storage
    pools_to_wake: list[str] = field(default_factory=list)  # one wake-up message for each entry
    objects_to_delete: list[str] = field(default_factory=list)  # their keys

    def commit(self) -> None:
        """Commit the transaction."""
        self.session.commit()

    def close(self) -> None:
        """Roll back what is not committed, and give the connection back."""
        self.session.close()

    def follow_up(self) -> None:
        """Wake workers and delete objects. What fails here the reconciler does later."""
        for pool in self.pools_to_wake:
            if not self.broker.send_wake_up(pool):
                break
        with suppress(StorageUnavailable):
            self.storage.remove(self.objects_to_delete)
