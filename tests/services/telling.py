"""Webhooks and deliveries, for tests that talk to real servers."""

import threading
from contextlib import contextmanager
from ipaddress import ip_network
from uuid import uuid4

from sqlalchemy import select, update

from jobs.tables import Delivery, Tenant, Webhook
from jobs.webhooks.signing import new_secret
from tests.services.jobs import DOCUMENT

# webhooks may point to the loopback, and tries follow each other at once
QUICK = {
    "webhook_timeout_s": 3.0, "webhook_rest_scale": 0.0, "webhook_allow_http": True,
    "webhook_allowed_networks": (ip_network("127.0.0.0/8"),),
}  # fmt: skip


def deliver(deliverer):
    """Deliver all that is due, and what becomes due by that."""
    while deliverer.start_due():
        deliverer.wait()


@contextmanager
def delivering(deliverer):
    """Let a deliverer work beside the block."""
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def add_webhooks(sessions, tenant, number, url, **values):
    """Add webhooks of any tenant, by the database; return their ids."""
    with sessions.begin() as session:
        if session.get(Tenant, tenant) is None:
            session.add(Tenant(id=tenant))
            session.flush()
        added = [Webhook(id=uuid4(), tenant=tenant, url=url, events=[], every_job=False, **values) for _ in range(number)]
        for webhook in added:
            webhook.secrets = [new_secret()]
        session.add_all(added)
        return [webhook.id for webhook in added]


def add_events(sessions, webhooks, number=1):
    """Add deliveries that are due, as many for each webhook."""
    with sessions.begin() as session:
        for webhook in webhooks:
            events = [Delivery(webhook=webhook, job_id=uuid4(), type="job.succeeded", data={}) for _ in range(number)]
            session.add_all(events)


def create(client, receiver, **fields):
    """Create a webhook."""
    return client.post("/v1/webhooks", json={"url": receiver.url} | fields).json()


def submit(client, **fields):
    """Submit a job and return its id."""
    return client.post("/v1/jobs", json=DOCUMENT | fields).json()["id"]


def end(client, **fields):
    """Submit a job and cancel it; return its id."""
    job_id = submit(client, **fields)
    client.post(f"/v1/jobs/{job_id}/cancel")
    return job_id


def log(client, webhook, **filters):
    """List the deliveries of a webhook."""
    return client.get(f"/v1/webhooks/{webhook['id']}/deliveries", params=filters).json()["deliveries"]


def change(sessions, table, **values):
    """Set columns of all rows of a table."""
    with sessions.begin() as session:
        session.execute(update(table).values(**values))


def row(sessions, table):
    """Return the only row of a table."""
    with sessions() as session:
        return session.scalars(select(table)).one()
