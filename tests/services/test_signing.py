"""Signed copies of real jobs: made by the reconciler, stored and listed as the other artifacts are."""

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime

import c2pa
import httpx2
import pytest
from sqlalchemy import select, update

from embedded.service import start_part
from embedded.stack import Stack
from jobs.errors import StorageUnavailable
from jobs.storage.objects import job_prefix
from jobs.storage.signed_copies import MAX_TRIES
from jobs.tables import Artifact, Job
from tests.certificates import write_certificate
from tests.services.jobs import add_job, read_job
from tests.services.test_photos import DRAG, finished, photo
from tests.services.test_service import wait_until
from worker.execution.runner import Runner
from worker.reconciler.c2pa import C2paSigner
from worker.reconciler.purge import Purger
from worker.reconciler.signed_copies import ResultSigner, SigningResult

LIMIT_S = 30
EDIT = DRAG | {"model": "tiny", "output": {"frames_every": 1, "animation": ["mp4", "webp", "gif"]}}
COPIES = [f"signed/{name}" for name in ("animation.gif", "animation.mp4", "animation.webp", "photo.png", "result.png")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


@pytest.fixture
def signing(sessions, storage, certificate):
    return ResultSigner(sessions, storage, C2paSigner.from_files(*certificate))


@pytest.fixture
def purge(sessions, storage):
    return Purger(sessions, storage, tidy_after_s=0, upload_retain_s=3600)


@pytest.fixture
def done(sessions, runner):
    """A job that has succeeded, with a result and an animation."""
    job_id = add_job(sessions)
    runner.run_next()
    return job_id


def listed(client, job_id):
    """The signed copies of a job, by name."""
    found = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    return {artifact["name"]: artifact for artifact in found if artifact["name"].startswith("signed/")}


def state_of(data, media_type):
    with c2pa.Reader(media_type, io.BytesIO(data)) as reader:
        return reader.get_validation_state()


def stored_and_shown(sessions, storage, job_id):
    """The keys in the store, and those of the rows."""
    with sessions() as session:
        rows = set(session.scalars(select(Artifact.key).where(Artifact.job_id == job_id)))
    return set(storage.keys(job_prefix("default", job_id))), rows


def test_the_edit_of_a_photo_gets_signed_copies_that_can_be_downloaded_and_checked(client, runner, signing):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    job = finished(client, runner, EDIT | {"source": {"upload": sha256}, "inversion": {"steps": 4, "tuning_steps": 3}})
    before = {artifact["name"]: artifact["sha256"] for artifact in job["artifacts"]}
    assert signing.sign() == SigningResult(jobs=1, copies=5)
    copies = listed(client, job["id"])
    assert list(copies) == COPIES
    for name, copy in copies.items():
        link = client.get(copy["url"])
        data = httpx2.get(link.headers["location"]).content
        assert (link.status_code, len(data), hashlib.sha256(data).hexdigest()) == (307, copy["size_bytes"], copy["sha256"])
        assert (name, state_of(data, copy["media_type"])) == (name, "Valid")
        changed = bytearray(data)
        changed[-40] ^= 1
        assert (name, state_of(bytes(changed), copy["media_type"])) == (name, "Invalid")
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{job['id']}/archive").content))
    assert set(copies) < set(archive.namelist())
    after = client.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"]
    assert {artifact["name"]: artifact["sha256"] for artifact in after if artifact["name"] not in copies} == before


def test_a_copy_names_the_photo_while_it_is_kept_and_its_source_type_always(client, runner, storage, signing):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    source = {"source": {"upload": sha256}, "inversion": {"steps": 4, "tuning_steps": 3}}
    kept = finished(client, runner, EDIT | source)
    signing.sign()
    gone = finished(client, runner, EDIT | source)
    assert client.delete(f"/v1/uploads/{sha256}").status_code == 204
    signing.sign()
    assert [said(client, storage, job["id"]) for job in (kept, gone)] == [(True, "c2pa.edited"), (False, "c2pa.created")]


def said(client, storage, job_id):
    """Whether the result's copy has a parent, and which of its actions says that an algorithm took part."""
    data = httpx2.get(client.get(listed(client, job_id)["signed/result.png"]["url"]).headers["location"]).content
    with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
        manifest = reader.get_active_manifest()
    last = manifest["assertions"][-1]["data"]["actions"][-1]
    assert last["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    return [parent["relationship"] for parent in manifest.get("ingredients", [])] == ["parentOf"], last["action"]


def test_a_second_look_adds_nothing_and_nothing_stays_of_a_deleted_job(client, sessions, storage, signing, done):
    assert signing.sign() == SigningResult(jobs=1, copies=2)
    objects = stored_and_shown(sessions, storage, done)
    assert (signing.sign(), stored_and_shown(sessions, storage, done)) == (SigningResult(), objects)
    assert client.delete(f"/v1/jobs/{done}").status_code == 204
    assert stored_and_shown(sessions, storage, done) == (set(), set())


def test_only_jobs_that_have_succeeded_are_signed_and_of_them_the_attempt_that_did(client, sessions, runner, signing):
    canceled, retried = add_job(sessions), add_job(sessions)
    client.post(f"/v1/jobs/{canceled}/cancel")
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == retried).values(attempt=1))
    assert signing.sign() == SigningResult()
    runner.run_next()
    assert signing.sign().jobs == 1
    with sessions() as session:
        copies = session.scalars(select(Artifact).where(Artifact.name.like("signed/%"))).all()
    assert {(copy.job_id, copy.attempt) for copy in copies} == {(retried, 2)}


class Killed(BaseException):
    """What no handler catches, as no handler runs in a killed process."""


class Watched:
    """The store, and somebody who acts when an object has just been put."""

    def __init__(self, storage, act):
        self.storage = storage
        self.act = act

    def get(self, key):
        return self.storage.get(key)

    def put(self, key, data, media_type):
        self.storage.put(key, data, media_type)
        self.act()


def die():
    raise Killed


@pytest.mark.parametrize("tidied_before", [False, True])
def test_a_crash_between_object_and_row_leaves_nothing_stray(sessions, storage, signing, purge, done, tidied_before):
    if tidied_before:
        assert purge.purge().tidied == 1
    with pytest.raises(Killed):
        ResultSigner(sessions, Watched(storage, die), signing.signer).sign()
    stored, shown = stored_and_shown(sessions, storage, done)
    assert len(stored - shown) == 1
    assert signing.sign() == SigningResult(jobs=1, copies=2)
    assert purge.purge().objects == 1
    stored, shown = stored_and_shown(sessions, storage, done)
    assert (stored, len([key for key in shown if "/signed/" in key])) == (shown, 2)


def test_a_job_that_ends_the_process_each_time_is_given_up_and_its_leftovers_go(sessions, storage, signing, purge, done):
    for _ in range(MAX_TRIES):
        with pytest.raises(Killed):
            ResultSigner(sessions, Watched(storage, die), signing.signer).sign()
    assert signing.sign() == SigningResult()
    assert read_job(sessions, done).signed_at is not None
    assert purge.purge().objects == MAX_TRIES
    stored, shown = stored_and_shown(sessions, storage, done)
    assert stored == shown


@contextmanager
def background_thread(action):
    """A thread that may have to wait; it has ended when the block has."""
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_what_is_just_being_signed_is_no_leftover(sessions, storage, signing, purge, done):
    assert_unharmed_by(purge.purge, sessions, storage, signing)
    assert read_job(sessions, done).tidied_at is not None
    stored, shown = stored_and_shown(sessions, storage, done)
    assert (stored, len([key for key in stored if "/signed/" in key])) == (shown, 2)


def assert_unharmed_by(action, sessions, storage, signing):
    """Let something be done as soon as the first copy is stored."""
    begun, ended = threading.Event(), threading.Event()

    def act():
        begun.set()
        ended.wait(0.5)  # it has to wait for us: nothing tells when it has begun to

    def when_begun():
        begun.wait(LIMIT_S)
        action()
        ended.set()

    with background_thread(when_begun):
        assert ResultSigner(sessions, Watched(storage, act), signing.signer).sign().jobs == 1


def test_a_job_that_is_deleted_while_it_is_signed_leaves_nothing(client, sessions, storage, signing, done):
    assert_unharmed_by(lambda: client.delete(f"/v1/jobs/{done}"), sessions, storage, signing)
    assert stored_and_shown(sessions, storage, done) == (set(), set())


def test_two_reconcilers_sign_each_job_once(sessions, storage, runner, certificate):
    for _ in range(6):
        add_job(sessions)
        runner.run_next()
    made = []
    signers = [ResultSigner(sessions, storage, C2paSigner.from_files(*certificate)) for _ in range(2)]
    with background_thread(lambda: made.append(signers[0].sign())):
        made.append(signers[1].sign())
    assert (sum(one.jobs for one in made), sum(one.copies for one in made)) == (6, 12)
    with sessions() as session:
        job_ids = session.scalars(select(Job.id)).all()
    for job_id in job_ids:
        stored, shown = stored_and_shown(sessions, storage, job_id)
        assert stored == shown


def test_a_file_that_cannot_be_signed_holds_up_neither_its_neighbours_nor_other_jobs(
    client, sessions, storage, runner, signing, done
):
    other = add_job(sessions)
    runner.run_next()
    with sessions() as session:
        key = session.get_one(Artifact, (done, 1, "result.png")).key
    storage.put(key, b"hello", "image/png")
    assert signing.sign() == SigningResult(jobs=1, copies=3, unsignable=1)
    assert [list(listed(client, job_id)) for job_id in (done, other)] == [
        ["signed/animation.mp4"],
        ["signed/animation.mp4", "signed/result.png"],
    ]
    assert [signing.sign().unsignable for _ in range(MAX_TRIES)] == [1] * (MAX_TRIES - 1) + [0]
    assert read_job(sessions, done).signed_at is not None


class Away(Watched):
    """A store that answers nothing."""

    def get(self, key):
        raise StorageUnavailable("the store does not answer")


def test_a_store_that_is_away_is_waited_for_and_costs_no_try(sessions, storage, signing, done):
    for _ in range(MAX_TRIES + 2):
        assert ResultSigner(sessions, Away(storage, None), signing.signer).sign() == SigningResult()
    assert read_job(sessions, done).sign_tries == 0
    assert signing.sign() == SigningResult(jobs=1, copies=2)


def test_once_the_certificate_has_ended_jobs_wait_for_another(sessions, storage, certificate, done):
    ended = C2paSigner.from_files(*certificate)
    ended.valid_until = datetime.now(UTC)
    assert ResultSigner(sessions, storage, ended).sign() == SigningResult()
    assert (read_job(sessions, done).sign_tries, read_job(sessions, done).signed_at) == (0, None)


def test_copies_count_for_what_a_tenant_stores(client, purge, sessions, signing, done):
    signing.sign()
    purge.purge()
    with sessions() as session:
        sizes = [artifact.size_bytes for artifact in session.scalars(select(Artifact))]
    assert client.get("/v1/usage").json()["stored_bytes"] == sum(sizes)


def environment_of(stack, certificate) -> Stack:
    paths = {"DRAGQUEUE_C2PA_CERTIFICATE": str(certificate[0]), "DRAGQUEUE_C2PA_KEY": str(certificate[1])}
    return Stack(stack.environment | paths, stack.logs)


def test_the_reconciler_signs_beside_its_sweeps(client, stack, certificate, cleanup, done):
    start_part(environment_of(stack, certificate), "reconciler", [], cleanup)
    wait_until(lambda: len(listed(client, done)) == 2)


def test_the_reconciler_does_not_start_with_a_certificate_that_is_not_there(stack, tmp_path):
    environment = environment_of(stack, (tmp_path / "none.pem", tmp_path / "none.key")).environment
    command = [sys.executable, "-P", "-m", "cli.main", "reconciler"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (ended.returncode, ended.stderr) == (
        1, f"dragqueue: DRAGQUEUE_C2PA_CERTIFICATE: {tmp_path}/none.pem cannot be read: No such file or directory\n",
    )  # fmt: skip
