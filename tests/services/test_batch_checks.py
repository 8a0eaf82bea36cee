"""How a batch is checked: without a transaction, each input once, for no longer than its client waits."""

from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from sqlalchemy import event, func, select, text, update

from api.services import batch_inputs
from api.services.batches import BatchService
from api.unit_of_work import UnitOfWork
from jobs.cancellation import Canceled, cancelable
from jobs.errors import KeyInUse, UploadNotFound
from jobs.models.manifest import ManifestFile
from jobs.queue import idempotency_holds
from jobs.storage import uploads
from jobs.tables import Batch, IdempotencyKey, Job, Refusal, Upload
from jobs.tenants.quotas import QueueQuota, Quotas
from tests.services.jobs import DOCUMENT
from tests.services.test_api import png
from tests.services.test_batches import count, jsonl, line, post


@pytest.fixture
def service(settings, sessions, storage, queue, api_key):
    """The batches of a request that has no route."""
    queue_quota = QueueQuota(Quotas.from_settings(settings))
    manifest_file = ManifestFile(settings.checkpoints)
    return BatchService("default", UnitOfWork(sessions(), queue, storage), sessions, storage, manifest_file, queue_quota)


class WatchedFile:
    """A batch that does something before one of its lines is read."""

    def __init__(self, lines, at, action):
        self.lines, self.at, self.action = lines, at, action
        self.read = 0

    def readline(self, limit):
        if self.read == self.at:
            self.action()
        self.read += 1
        return self.lines[self.read - 1] if self.read <= len(self.lines) else b""


def lines_of(count):
    return [jsonl(line(str(k))) for k in range(count)]


def in_transaction(sessions):
    """How many connections to this database are in a transaction, besides the one that asks."""
    others = "datname = current_database() AND backend_type = 'client backend' AND pid != pg_backend_pid()"
    with sessions() as session:
        return session.scalar(text(f"SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND {others}"))


def test_no_transaction_is_open_while_lines_are_checked(service, sessions):
    seen = []
    service.submit(WatchedFile(lines_of(3), 2, lambda: seen.append(in_transaction(sessions))), "f", "key")
    assert (seen, count(sessions, Job)) == ([0], 3)


def test_work_ends_with_its_client_and_leaves_nothing(service, sessions):
    gone = Event()
    file = WatchedFile(lines_of(100), 5, gone.set)
    with cancelable(gone), pytest.raises(Canceled):
        service.submit(file, "f", "key")
    assert file.read == 6
    assert [count(sessions, table) for table in (Batch, Job, IdempotencyKey)] == [0, 0, 0]


def test_a_key_in_use_is_answered_at_once_and_by_no_open_transaction(service, sessions):
    refused = []

    def send_again():
        with pytest.raises(KeyInUse) as caught:
            service.submit(WatchedFile([], 0, pytest.fail), "f", "key")
        refused.append((str(caught.value), in_transaction(sessions)))

    first = service.submit(WatchedFile(lines_of(2), 1, send_again), "f", "key")
    assert refused == [("a request with the key key is still being answered", 0)]
    assert service.submit(WatchedFile([], 0, pytest.fail), "f", "key") == replace(first, replayed=True)
    assert count(sessions, Batch) == 1


def test_the_key_of_a_process_that_died_is_free_after_a_while(service, sessions):
    with sessions.begin() as session:
        idempotency_holds.hold_key(session, "default", "key", "f")
        before = func.now() - 2 * idempotency_holds.HOLD
        session.execute(update(IdempotencyKey).values(created_at=before))
    assert not service.submit(WatchedFile(lines_of(1), -1, None), "f", "key").replayed


def test_who_lost_the_key_stores_nothing(service, sessions):
    def lose():
        with sessions.begin() as session:
            session.execute(update(IdempotencyKey).values(created_at=func.clock_timestamp()))

    with pytest.raises(KeyInUse, match="was not answered in time"):
        service.submit(WatchedFile(lines_of(2), 1, lose), "f", "key")
    assert count(sessions, Job) == 0


def upload_mask(client, mask):
    return client.post("/v1/uploads?kind=mask", content=png(mask)).json()["sha256"]


def test_an_upload_that_vanishes_meanwhile_leaves_no_half_batch(service, sessions, storage, client):
    mask = upload_mask(client, np.ones((32, 32), dtype=bool))

    def remove():
        with sessions.begin() as session:
            uploads.remove(session, "default", mask, storage)

    lines = [jsonl(line("a", movable={"upload": mask})), jsonl(line("b"))]
    with pytest.raises(UploadNotFound, match="deleted while the batch was checked"):
        service.submit(WatchedFile(lines, 1, remove), "f", None)
    assert [count(sessions, table) for table in (Batch, Job)] == [0, 0]


def test_lines_that_name_the_same_inputs_share_the_look_up(service, sessions, client):
    mask = upload_mask(client, np.ones((32, 32), dtype=bool))
    lines = [jsonl(line(str(k), movable={"upload": mask})) for k in range(50)]
    statements = []
    listener = lambda *arguments: statements.append(arguments[2])  # noqa: E731
    event.listen(sessions.kw["bind"], "before_cursor_execute", listener)
    service.submit(WatchedFile(lines, -1, None), "f", None)
    event.remove(sessions.kw["bind"], "before_cursor_execute", listener)
    assert count(sessions, Job) == 50
    assert len([statement for statement in statements if "FROM uploads" in statement]) == 3  # found, kept, touched


def fine_mask():
    """A mask of which only its pixels tell what a crop shows."""
    mask = np.zeros((96, 80), dtype=bool)
    mask[:, 39:42] = True
    return mask


def photo_line(client, custom_id, mask, crop):
    photo = client.post("/v1/uploads", content=png(np.zeros((96, 80, 3), dtype=np.uint8))).json()["sha256"]
    return jsonl(line(custom_id, source={"upload": photo, "crop": crop}, points=[], movable={"upload": mask}))


def test_masks_that_only_their_pixels_decide_are_cut_once_and_not_without_end(service, sessions, client, monkeypatch):
    monkeypatch.setattr(batch_inputs, "MAX_CUTS", 1)
    mask, other = upload_mask(client, fine_mask()), {"box": [0, 0, 64, 64]}
    lines = [photo_line(client, str(k), mask, "center" if k < 3 else other) for k in range(4)]
    service.submit(WatchedFile(lines, -1, None), "f", None)
    with sessions() as session:
        (refusal,) = session.scalars(select(Refusal))
    assert (refusal.line, "a batch may have 1 such" in refusal.problems[0]["message"]) == (4, True)


def test_the_outline_of_an_older_mask_is_made_once_and_kept(service, sessions, client):
    mask = upload_mask(client, np.ones((32, 32), dtype=bool))
    with sessions.begin() as session:
        kept = session.get(Upload, ("default", mask)).outline
        session.execute(update(Upload).values(outline=None))
    service.submit(WatchedFile([jsonl(line("a", movable={"upload": mask}))], -1, None), "f", None)
    with sessions() as session:
        assert session.get(Upload, ("default", mask)).outline == kept
        session.execute(update(Upload).values(outline=None))
        session.commit()
    assert client.post("/v1/jobs", json=DOCUMENT | {"movable": {"upload": mask}}).status_code == 202
    with sessions() as session:
        assert session.get(Upload, ("default", mask)).outline == kept


def test_a_line_is_stored_as_a_job_sent_alone(client, sessions):
    metadata = {"text": "tab\t, line\n, \\ and \r, ü and 😀", "numbers": [1, 1.5, 1e300, -0.0, 2**70], "nested": {"null": None}}
    change = {"metadata": metadata, "start_before": "2031-01-01T00:00:00+00:00", "movable": {"shapes": [{"box": [0, 0, 9, 9]}]}}
    post(client, jsonl({"custom_id": "ü\\N", "job": DOCUMENT | change}))
    alone = client.post("/v1/jobs", json=DOCUMENT | change).json()
    with sessions() as session:
        (job,) = session.scalars(select(Job).where(Job.batch.is_not(None)))
        sent_alone = session.get(Job, alone["id"])
    assert (job.spec, job.start_before, job.custom_id) == (sent_alone.spec, sent_alone.start_before, "ü\\N")


@pytest.mark.parametrize("bad", [b'{"job": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"job": [' + b"[]," * 40_000 + b"[]]}"])
def test_a_line_of_many_values_is_refused_as_one(client, bad):
    batch = post(client, bad + b"\n" + jsonl(line("a"))).json()
    assert (batch["lines"], batch["refused"]) == (2, 1)
