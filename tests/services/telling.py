"""Webhooks and deliveries, for tests that talk to real servers."""

from ipaddress import ip_network

from sqlalchemy import select, update

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
