import pytest
from pydantic import ValidationError

from jobs.settings import Settings

GIVEN = {
    "database_url": "postgresql+psycopg://db/app",
    "redis_url": "redis://broker",
    "s3_endpoint": "http://store:9000",
    "s3_access_key": "key",
    "s3_secret_key": "a-secret-of-our-own",
}


def test_settings_come_from_the_environment(monkeypatch):
    for name, value in GIVEN.items():
        monkeypatch.setenv(f"DRAGQUEUE_{name.upper()}", value)
    assert Settings().database_url == "postgresql+psycopg://db/app"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_postgres_url_means_the_one_driver(scheme):
    assert Settings(**GIVEN | {"database_url": f"{scheme}://db/app"}).database_url == "postgresql+psycopg://db/app"


@pytest.mark.parametrize("url", ["foo", "mysql://db/app", ""])
def test_another_database_is_refused(url):
    with pytest.raises(ValidationError, match="must be postgresql://"):
        Settings(**GIVEN | {"database_url": url})


def test_example_secrets_are_refused_in_production():
    with pytest.raises(ValidationError, match="well-known example"):
        Settings(**GIVEN | {"s3_secret_key": "minioadmin"})
    assert Settings(**GIVEN | {"s3_secret_key": "minioadmin", "environment": "development"})


@pytest.mark.parametrize("alone", ["c2pa_certificate", "c2pa_key"])
def test_a_certificate_comes_with_its_key(alone):
    with pytest.raises(ValidationError, match="must be set together"):
        Settings(**GIVEN, **{alone: "some.pem"})


def test_a_beat_longer_than_the_lease_is_refused():
    with pytest.raises(ValidationError, match="shorter than"):
        Settings(**GIVEN, lease_s=5, beat_s=10)


def test_secrets_are_not_printed():
    assert "a-secret-of-our-own" not in repr(Settings(**GIVEN))
