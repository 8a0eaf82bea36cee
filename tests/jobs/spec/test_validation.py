import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from jobs.errors import InvalidJob
from jobs.models.manifest import ModelDefaults, ModelManifest
from jobs.spec.validation import check_submission, parse_json, parse_spec, validate_document
from jobs.storage.decoding import decode_mask
from tests.manifests import TINY

MANIFEST = ModelManifest(None, {"tiny": TINY})
GOOD = {"model": "tiny", "source": {"seed": 1}, "points": [{"handle": [5, 6], "target": [15, 6]}]}
POINT = GOOD["points"][0]


def png(mask: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(mask).save(out, format="PNG")
    return out.getvalue()


def problems_of(document, mask=None):
    with pytest.raises(InvalidJob) as caught:
        check_submission(document, MANIFEST, None if mask is None else decode_mask(png(mask), "movable"))
    return {problem.field: problem.message for problem in caught.value.problems}


def test_a_good_job_is_resolved_to_the_last_option():
    spec = check_submission(GOOD, MANIFEST).spec
    assert None not in spec.drag.model_dump().values()
    assert (spec.drag.max_iterations, spec.drag.feature_resolution, spec.source.truncation_psi) == (200, 16, 0.7)


def test_the_clients_value_beats_the_models_and_the_models_the_presets():
    model = TINY.model_copy(update={"defaults": ModelDefaults(learning_rate=0.01, feature_resolution=8, truncation_psi=1.0)})
    manifest = ModelManifest(None, {"tiny": model})
    spec = check_submission(GOOD | {"drag": {"feature_resolution": 32}}, manifest).spec
    assert (spec.drag.learning_rate, spec.drag.feature_resolution, spec.source.truncation_psi) == (0.01, 32, 1.0)


def test_the_paper_preset_allows_two_pixels_beyond_five_points():
    def stop_distance(count):
        points = [{"handle": [k, 6], "target": [15, 6]} for k in range(count)]
        return check_submission(GOOD | {"points": points, "drag": {"preset": "paper"}}, MANIFEST).spec.drag.stop_distance

    assert (stop_distance(5), stop_distance(6)) == (1.0, 2.0)


@pytest.mark.parametrize("label", [None, 3])
def test_a_conditional_model_needs_one_of_its_classes(label):
    manifest = ModelManifest(None, {"tiny": TINY.model_copy(update={"c_dim": 3})})
    with pytest.raises(InvalidJob, match=r"source\.class: must be 0 to 2 for tiny"):
        check_submission(GOOD | {"source": {"seed": 1, "class": label}}, manifest)
    spec = check_submission(GOOD | {"source": {"seed": 1, "class": 2}}, manifest).spec
    assert spec.model_dump(mode="json")["source"]["class"] == 2


LARGE = ModelManifest(None, {"tiny": TINY.model_copy(update={"resolution": 64, "num_ws": 10})})


@pytest.mark.parametrize("drag", [{"trainable_layers": 7}, {"feature_resolution": 16}])
def test_the_early_mask_term_says_what_it_needs(drag):
    document = GOOD | {"drag": {"mask_term": "early", **drag}}
    with pytest.raises(InvalidJob, match="at most 6 trainable_layers and a feature_resolution of at least 32"):
        check_submission(document, LARGE)


def test_the_fast_preset_takes_the_early_mask_term_where_it_holds():
    def chosen(manifest, **drag):
        return check_submission(GOOD | {"drag": {"preset": "fast", **drag}}, manifest).spec.drag

    assert (chosen(LARGE).mask_term, chosen(LARGE).precision) == ("early", "bfloat16")
    assert chosen(MANIFEST).mask_term == chosen(LARGE, trainable_layers=7).mask_term == "paper"


def test_no_points_is_a_picture_to_render():
    assert check_submission({"model": "tiny", "source": {"seed": 1}}, MANIFEST).spec.points == []


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"model": "nothing"}, "model", "known models: tiny"),
        ({"points": [{"handle": [5, 6], "target": [32, 6]}]}, "points[0].target", "0 to 31 pixels"),
        ({"points": [POINT, {"handle": [5, -1], "target": [9, 9]}]}, "points[1].handle", "0 to 31 pixels"),
        ({"points": [{"handle": [5, 6], "target": [5, 6]}]}, "points[0].target", "equals its handle"),
        ({"points": [POINT] * 65}, "points", "at most 64"),
        ({"points": [{"handle": [5, math.nan], "target": [5, 6]}]}, "points[0].handle[1]", "finite"),
        ({"points": [{"handle": [5, math.inf], "target": [5, 6]}]}, "points[0].handle[1]", "finite"),
        ({"points": [{"handle": [5], "target": [5, 6]}]}, "points[0].handle[1]", "required"),
        ({"colour": "red"}, "colour", "not permitted"),
        ({"drag": {"speed": 3}}, "drag.speed", "not permitted"),
        ({"drag": {"max_iterations": 0}}, "drag.max_iterations", "greater than or equal to 1"),
        ({"drag": {"trainable_layers": 9}}, "drag.trainable_layers", "1 to 8"),
        ({"drag": {"latent_space": "z"}}, "drag.latent_space", "pattern"),
        ({"drag": {"latent_space": "pca:17"}}, "drag.latent_space", "K from 1 to 16 for tiny"),
        ({"drag": {"feature_resolution": 48}}, "drag.feature_resolution", "[4, 8, 16, 32]"),
        ({"drag": {"mask_term": "early"}}, "drag.mask_term", "skip generator of at least 64 px"),
        ({"drag": {"precision": "float16"}}, "drag.precision", "bfloat16"),
        ({"movable": {"shapes": []}}, "movable.shapes", "at least 1"),
        ({"movable": {"shapes": [{"circle": [-9, -9, 2]}]}}, "movable", "at least one pixel"),
        ({"movable": {"shapes": [{"circle": [9, 9, 2], "box": [0, 0, 1, 1]}]}}, "movable.shapes[0]", "exactly one"),
        ({"source": {"seed": -1}}, "source.seed", "greater than or equal to 0"),
        ({"source": {"seed": 2**32}}, "source.seed", "less than or equal to 4294967295"),
        ({"source": {}}, "source", "exactly one of seed, upload, latent, job"),
        ({"source": {"seed": 1, "crop": "center"}}, "source", "crop goes with a photo"),
        ({"source": {"latent": "0" * 64, "truncation_psi": 1}}, "source", "go with a seed"),
        ({"inversion": {"steps": 3}}, "job", "inversion goes with a photo"),
        ({"source": {"seed": 1, "class": 0}}, "source.class", "has no classes"),
        ({"metadata": {"note": "x" * 20_000}}, "metadata", "16384 bytes"),
        ({"metadata": {"note": "\u00e9" * 9_000}}, "metadata", "16384 bytes"),
        ({"metadata": {"note": "a\x00b"}}, "metadata", "NUL"),
        ({"metadata": {"note": math.nan}}, "metadata", "not JSON compliant"),
        ({"source": {"seed": "7"}}, "source.seed", "integer"),
        ({"source": {"seed": True}}, "source.seed", "integer"),
        ({"output": {"overlay": "yes"}}, "output.overlay", "boolean"),
        ({"output": {"animation": ["mp4", "mp4"]}}, "output.animation", "twice"),
        ({"start_before": "0001-01-01T00:00:00+14:00"}, "start_before", "2000-01-01"),
        ({"start_before": "9999-12-31T23:59:59-14:00"}, "start_before", "9000-01-01"),
        ({"start_before": "2026-01-01T00:00:00"}, "start_before", "timezone"),
    ],
)
def test_every_problem_names_its_field_and_the_limit(change, field, message):
    problems = problems_of(GOOD | change)
    assert list(problems) == [field]
    assert message in problems[field]


def test_a_flood_of_problems_is_told_in_part():
    assert len(problems_of(GOOD | {f"{k}" + "x" * 500: 1 for k in range(500)})) == 100


def test_more_problems_than_anybody_reads_are_counted_and_not_described():
    assert problems_of(GOOD | {f"{k}": 1 for k in range(2_000)}) == {"job": "has 2000 problems: too many to list any"}


def test_all_problems_are_told_at_once():
    points = [{"handle": [99, 6], "target": [5, 6]}, {"handle": [5, 6], "target": [5, 6]}]
    assert set(problems_of(GOOD | {"points": points})) == {"points[0].handle", "points[1].target"}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((32, 32), dtype=bool), "at least one pixel"),
        (np.ones((16, 32), dtype=bool), "32 x 32 pixels like the picture, got 32 x 16"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    assert message in problems_of(GOOD, mask)["movable"]


def test_a_mask_and_shapes_are_one_too_many():
    document = GOOD | {"movable": {"shapes": [{"box": [0, 0, 5, 5]}]}}
    assert "not both" in problems_of(document, np.ones((32, 32), dtype=bool))["movable"]


@pytest.mark.parametrize("crop", ["middle", {"box": [0, 0, 5]}, {"landmarks": {}}, {"box": [0, 0, 5, "x"]}])
def test_a_crop_of_no_known_form_is_named_as_the_request_names_it(crop):
    fields = problems_of(GOOD | {"source": {"upload": "0" * 64, "crop": crop}})
    assert all(field.startswith("source.crop") and "literal" not in field and "Box" not in field for field in fields)


@pytest.mark.parametrize("document", [None, 3, [], "text"])
def test_a_document_that_is_no_object_is_refused(document):
    assert list(problems_of(document)) == ["job"]


TEXT = '{"model": "tiny", "source": {"seed": 1}, "points": [{"handle": [5, 6], "target": [15, 6]}]%s}'


def parsed(parse, text):
    try:
        return parse(text)
    except InvalidJob as error:
        return error.problems


@pytest.mark.parametrize(
    "text",
    [
        TEXT % "",
        TEXT % ', "model": "other"',
        TEXT % ', "model": 3',
        TEXT % ', "more": 1, "more": 2',
        TEXT % ', "metadata": {"a": 1, "b": 2, "a": 3}',
        TEXT % ', "metadata": {"a": NaN}',
        TEXT % ', "run_timeout_s": NaN',
        TEXT % ', "run_timeout_s": 1e999',
        TEXT % ', "drag": {"latent_weight": -0}',
        TEXT % f', "metadata": {{"a": {"9" * 400}}}',
        TEXT % f', "metadata": {{"a": {"9" * 5000}}}',
        TEXT % ', "metadata": {"a": "\\ud800"}',
        TEXT % ', "\\ud800": 1',
        TEXT % f', "metadata": {{"a": {"[" * 250}{"]" * 250}}}',
        "[" * 100_000,
        "{",
        "",
        "{'model': 1}",
        "null",
        "NaN",
    ],
)
def test_text_is_parsed_as_python_would_parse_it(text):
    """The text goes to pydantic as it is; what that means must be what `json.loads` says."""
    assert parsed(parse_spec, text.encode()) == parsed(lambda text: validate_document(parse_json(text)), text.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_text_may_be_encoded_as_json_allows(encoding):
    assert parse_spec((TEXT % "").encode(encoding)) == validate_document(json.loads(TEXT % ""))
