"""Being told of jobs, for tests that talk to real servers."""

from ipaddress import ip_network

from sqlalchemy import select, update

from tests.services.jobs import DOCUMENT

# the loopback may be told; nothing rests between two tries
QUICK = {
    "webhook_timeout_s": 3.0, "webhook_rest_scale": 0.0, "webhook_allow_http": True,
    "webhook_allowed_networks": (ip_network("127.0.0.0/8"),),
}  # fmt: skip


def deliver(deliverer):
    """All that is due, and what that makes due."""
    while deliverer.start_due():
        deliverer.wait()


def create(client, receiver, **fields):
    return client.post("/v1/webhooks", json={"url": receiver.url} | fields).json()


def submit(client, **fields):
    return client.post("/v1/jobs", json=DOCUMENT | fields).json()["id"]


def end(client, **fields):
    """A job that has ended."""
    job_id = submit(client, **fields)
    client.post(f"/v1/jobs/{job_id}/cancel")
    return job_id


def log(client, webhook, **filters):
    return client.get(f"/v1/webhooks/{webhook['id']}/deliveries", params=filters).json()["deliveries"]


def change(sessions, table, **values):
    with sessions.begin() as session:
        session.execute(update(table).values(**values))


def row(sessions, table):
    with sessions() as session:
        return session.scalars(select(table)).one()
