import pytest

from jobs.environment import SettingsInvalid, read_settings

GIVEN = {
    "DRAGQUEUE_DATABASE_URL": "postgresql+psycopg://db/app",
    "DRAGQUEUE_REDIS_URL": "redis://broker",
    "DRAGQUEUE_S3_ENDPOINT": "http://store:9000",
    "DRAGQUEUE_S3_ACCESS_KEY": "key",
    "DRAGQUEUE_S3_SECRET_KEY": "a-secret-of-our-own",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DRAGQUEUE_LEASE_S": "abc"}, "settings: DRAGQUEUE_LEASE_S: Input should be a valid number"),
        ({"DRAGQUEUE_LEASE_S": "1"}, "settings: DRAGQUEUE_BEAT_S \\(10.0 s\\) must be shorter"),
        ({"DRAGQUEUE_S3_SECRET_KEY": "minioadmin"}, "settings: DRAGQUEUE_S3_SECRET_KEY is a well-known example"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(change, message):
    with pytest.raises(SettingsInvalid, match=message):
        read_settings(GIVEN | change)


def test_every_missing_variable_is_named():
    with pytest.raises(SettingsInvalid, match="DRAGQUEUE_DATABASE_URL: Field required; DRAGQUEUE_REDIS_URL: Field required"):
        read_settings({})
