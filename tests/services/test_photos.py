"""Photos through HTTP and a worker in this process: upload, invert, drag, stop, go on."""

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from engine.inversion.inversion import Inversion, InversionOptions
from jobs.errors import ObjectMissing
from jobs.storage.objects import upload_key
from jobs.tables import Upload
from tests.decoding import read
from tests.generators import tiny_generator
from tests.services.jobs import DOCUMENT
from worker.edit.inputs import prepare_inversion
from worker.execution.runner import Runner

QUICK = {"steps": 4, "tuning_steps": 3}
DRAG = {"points": [{"handle": [30, 30], "target": [50, 36]}], "drag": {"max_iterations": 4, "stop_distance": 0.1}}


def photo(width=96, height=80, kind="PNG", seed=2):
    """A JPEG or PNG of something that the tiny generator can draw, roughly."""
    generator = tiny_generator()
    face = Image.fromarray(generator.render(generator.map(seed=seed, truncation_psi=0.7)))
    out = io.BytesIO()
    face.resize((width, height), Image.Resampling.BICUBIC).save(out, format=kind)
    return out.getvalue()


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


def post(client, document, **parts):
    files = {"job": json.dumps(document).encode()} | parts
    answer = client.post("/v1/jobs", files=files) if parts else client.post("/v1/jobs", json=document)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finished(client, runner, document, **parts):
    job_id = post(client, document, **parts)
    runner.run_next()
    job = client.get(f"/v1/jobs/{job_id}", params={"expand": "artifacts"}).json()
    assert (job["state"], job["error"]) == ("succeeded", None)
    return job


def artifact(storage, job, name):
    return storage.get(f"t/default/j/{job['id']}/a{job['attempt']}/{name}")


def picture(storage, job, name):
    return np.asarray(Image.open(io.BytesIO(artifact(storage, job, name))))


def test_an_upload_is_kept_once_under_its_content(client):
    first, second = (client.post("/v1/uploads", content=photo()) for _ in range(2))
    assert (first.status_code, second.json()) == (201, first.json())
    upload = first.json()
    assert (upload["kind"], upload["width"], upload["height"]) == ("image", 96, 80)
    assert client.get(f"/v1/uploads/{upload['sha256']}").json() == upload
    assert client.get(f"/v1/uploads/{'0' * 64}").status_code == 404
    assert client.get("/v1/uploads/%00").status_code == 422


@pytest.mark.parametrize(("body", "reason"), [(b"hello", "not a picture"), (b"\x93NUMPY", "not an .npy"), (b"", "not a picture")])
def test_what_is_no_upload_is_refused(client, body, reason):
    answer = client.post("/v1/uploads", content=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")
    assert reason in answer.json()["detail"]


def test_a_photo_is_inverted_edited_and_put_back(client, runner, storage):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    source = {"upload": sha256, "crop": {"box": [10, 6, 74, 70]}}
    document = DRAG | {"model": "tiny", "source": source, "inversion": QUICK}
    job = finished(client, runner, document | {"movable": {"shapes": [{"circle": [40, 36, 20]}]}})
    names = {kept["name"] for kept in job["artifacts"]}
    assert {"inverted.png", "generator.safetensors", "photo.png", "latent.safetensors", "source.png"} <= names
    whole = picture(storage, job, "photo.png")
    outside = np.ones((80, 96), dtype=bool)
    outside[6:70, 10:74] = False
    assert (whole[outside] == np.asarray(Image.open(io.BytesIO(photo())))[outside]).all()
    story = json.loads(artifact(storage, job, "trajectory.json"))
    assert [step["phase"] for step in story["inversion"]] == ["projection"] * 4 + ["tuning"] * 3
    assert story["steps"][0]["handles"][0] == pytest.approx([(30 - 10 + 0.5) / 2 - 0.5, (30 - 6 + 0.5) / 2 - 0.5])


def test_a_photo_without_points_is_only_inverted(client, runner, storage):
    job = finished(client, runner, {"model": "tiny", "inversion": QUICK}, image=photo(kind="JPEG"))
    assert job["stop_reason"] is None
    assert artifact(storage, job, "result.png") == artifact(storage, job, "inverted.png")
    assert job["spec"]["source"]["upload"]


def test_a_chain_of_edits_goes_on_from_where_it_was_stopped(client, runner, storage):
    inverted = finished(client, runner, {"model": "slow", "inversion": QUICK}, image=photo())
    drag = {"points": [{"handle": [100, 100], "target": [180, 120]}], "drag": {"max_iterations": 200}}
    running = post(client, drag | {"model": "slow", "source": {"job": inverted["id"]}})
    worker = threading.Thread(target=runner.run_next)
    worker.start()
    while (client.get(f"/v1/jobs/{running}").json()["progress"] or {}).get("iteration", 0) < 3:
        time.sleep(0.02)
    assert client.post(f"/v1/jobs/{running}/stop").json()["stop_requested"]
    worker.join()
    stopped = client.get(f"/v1/jobs/{running}").json()
    assert (stopped["state"], stopped["stop_reason"]) == ("succeeded", "stopped")
    assert (stopped["parent"], stopped["root"]) == (inverted["id"], inverted["id"])
    further = finished(client, runner, {"model": "slow", "source": {"job": running}})
    assert (further["parent"], further["root"]) == (running, inverted["id"])
    assert artifact(storage, further, "latent.safetensors") == artifact(storage, stopped, "latent.safetensors")
    assert artifact(storage, further, "source.png") == artifact(storage, stopped, "result.png")
    assert artifact(storage, further, "generator.safetensors") == artifact(storage, inverted, "generator.safetensors")
    assert picture(storage, further, "photo.png").shape == (80, 96, 3)


def test_a_mask_of_the_photo_is_cut_with_it(client, runner, storage):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    mask = np.zeros((80, 96), dtype=np.uint8)
    mask[6:38, 10:42] = 255
    uploaded = client.post("/v1/uploads?kind=mask", content=png(mask)).json()
    assert (uploaded["kind"], uploaded["width"], uploaded["height"]) == ("mask", 96, 80)
    source = {"upload": sha256, "crop": {"box": [10, 6, 74, 70]}}
    document = DRAG | {"model": "tiny", "source": source, "inversion": QUICK, "movable": {"upload": uploaded["sha256"]}}
    finished(client, runner, document)
    assert refused(client, document | {"movable": {"upload": sha256}}) == (422, "invalid_job", ["movable.upload"])
    small = client.post("/v1/uploads?kind=mask", content=png(mask[:9])).json()["sha256"]
    assert refused(client, document | {"movable": {"upload": small}}) == (422, "invalid_job", ["movable"])


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def test_a_stop_that_comes_early_keeps_the_source(client, runner, storage):
    job_id = post(client, DOCUMENT)
    for _ in range(2):
        assert client.post(f"/v1/jobs/{job_id}/stop").status_code == 200
    runner.run_next()
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["stop_reason"]) == ("succeeded", "stopped")


def test_a_latent_from_elsewhere_is_edited(client, runner, storage):
    w = tiny_generator().map(seed=4, truncation_psi=0.7).numpy()
    sha256 = client.post("/v1/uploads", content=save({"w": w[0, :1]})).json()["sha256"]
    job = finished(client, runner, DOCUMENT | {"source": {"latent": sha256}, "points": []})
    assert (load(artifact(storage, job, "latent.safetensors"))["w"] == w).all()


def refused(client, document, **parts):
    files = {"job": json.dumps(document).encode()} | parts
    answer = client.post("/v1/jobs", files=files) if parts else client.post("/v1/jobs", json=document)
    problem = answer.json()
    return answer.status_code, problem["code"], [error["field"] for error in problem.get("errors", [])]


def test_what_cannot_be_gone_on_from_is_refused(client, runner):
    waiting = post(client, DOCUMENT)
    source = {"job": waiting}
    assert refused(client, DOCUMENT | {"source": source})[:2] == (409, "parent_unusable")
    assert refused(client, DOCUMENT | {"source": {"job": "0" * 8 + "-0000-0000-0000-" + "0" * 12}})[:2] == (404, "job_not_found")
    runner.run_next()
    assert refused(client, DOCUMENT | {"model": "slow", "source": source})[:2] == (409, "parent_unusable")


def test_bad_photos_latents_and_crops_are_refused_with_their_field(client):
    good = {"model": "tiny"}
    latent = client.post("/v1/uploads", content=save({"w": np.zeros((3, 16), dtype=np.float32)})).json()["sha256"]
    image = client.post("/v1/uploads", content=photo()).json()["sha256"]
    assert refused(client, good | {"source": {"upload": "0" * 64}})[:2] == (404, "upload_not_found")
    assert refused(client, good | {"source": {"upload": latent}}) == (422, "invalid_job", ["source.upload"])
    assert refused(client, good | {"source": {"latent": image}}) == (422, "invalid_job", ["source.latent"])
    assert refused(client, good | {"source": {"latent": latent}}) == (422, "invalid_job", ["source.latent"])
    crop = {"box": [0, 0, 100, 100]}
    assert refused(client, good | {"source": {"crop": crop}}, image=photo()) == (422, "invalid_job", ["source.crop.box"])
    assert refused(client, good | {"source": {"seed": 1}}, image=photo()) == (422, "invalid_job", ["source"])
    assert refused(client, good, image=b"hello") == (422, "invalid_job", ["image"])
    outside = {"points": [{"handle": [1, 40], "target": [50, 40]}]}
    assert refused(client, good | outside, image=photo()) == (422, "invalid_job", ["points[0].handle"])


def test_a_refused_job_leaves_no_photo_behind(client, sessions, storage):
    assert refused(client, {"model": "tiny", "points": [{"handle": [-1, 0], "target": [5, 5]}]}, image=photo(seed=77))[0] == 422
    with sessions() as session:
        assert session.query(Upload).count() == 0
    with pytest.raises(ObjectMissing):
        storage.get(upload_key("default", read(photo(seed=77)).sha256))


def test_an_inversion_that_diverges_has_its_own_code(client, settings, sessions, storage, queue):
    job_id = post(client, {"model": "tiny", "inversion": QUICK}, image=photo())
    Runner(settings, sessions, storage, queue, make_inversion=diverging_inversion).run_next()
    job = client.get(f"/v1/jobs/{job_id}", params={"expand": "artifacts"}).json()
    assert (job["state"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "inversion_diverged", False)
    assert [kept["name"] for kept in job["artifacts"]] == ["inverted.png"]


def diverging_inversion(*arguments):
    """Prepare an inversion with a learning rate that no client may ask for."""
    usual = prepare_inversion(*arguments)
    options = InversionOptions(steps=2, tuning_steps=9, tuning_learning_rate=1e30)
    return Inversion(usual.original, usual.target, options, perceptual=usual.perceptual)
