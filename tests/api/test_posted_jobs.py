"""Posted jobs before anything is asked of a server."""

import pytest

from api.posted_jobs import PostedJob, parse_posted_job, set_source_upload
from jobs.errors import InvalidJob

SHA256 = "0" * 64


def refused_fields(call):
    with pytest.raises(InvalidJob) as caught:
        call()
    return [problem.field for problem in caught.value.problems]


def test_the_fingerprint_is_the_one_that_is_stored_with_keys_since_the_first_release():
    posted = PostedJob(b'{"source": {"seed": 1}, "model": "tiny"}', image=b"photo")
    assert posted.fingerprint() == "2be729a3da0b1f2559c18d92e15113328ccdbf9ffc88db96770820dce26640b9"


def test_the_fingerprint_tells_files_apart_and_not_the_order_of_keys():
    jobs = [
        PostedJob(b'{"a": 1, "b": 2}'),
        PostedJob(b'{ "b":2, "a":1 }'),
        PostedJob(b'{"a": 1, "b": 2}', image=b"x"),
        PostedJob(b'{"a": 1, "b": 2}', movable_png=b"x"),
        PostedJob(b'{"a": 1, "b": 3}'),
    ]
    fingerprints = [job.fingerprint() for job in jobs]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize("job", [PostedJob(b"{"), PostedJob(b"{", image=b"no photo"), PostedJob(b"{", movable_png=b"no mask")])
def test_what_is_no_json_is_reported_before_the_files(job):
    assert refused_fields(lambda: parse_posted_job(job, "default")) == refused_fields(job.fingerprint) == ["job"]


def test_a_file_that_cannot_be_read_is_reported_before_the_fields():
    assert refused_fields(lambda: parse_posted_job(PostedJob(b'{"more": 1}', image=b"no photo"), "default")) == ["image"]


@pytest.mark.parametrize(
    ("document", "source"),
    [
        ({}, {"upload": SHA256}),
        ({"source": None}, {"upload": SHA256}),
        ({"source": {"crop": "center"}}, {"crop": "center", "upload": SHA256}),
    ],
)
def test_the_part_image_becomes_the_source(document, source):
    assert set_source_upload(document | {"model": "tiny"}, SHA256) == {"model": "tiny", "source": source}


@pytest.mark.parametrize("source", [{"seed": 1}, {"upload": SHA256}, [1], "text"])
def test_the_part_image_goes_with_no_other_source(source):
    assert refused_fields(lambda: set_source_upload({"source": source}, SHA256)) == ["source"]
