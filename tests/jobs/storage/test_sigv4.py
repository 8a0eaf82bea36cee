from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

from jobs.storage.sigv4 import UrlSigner


def test_the_signature_is_that_of_the_example_in_amazons_documentation():
    signer = UrlSigner(
        endpoint="https://examplebucket.s3.amazonaws.com", region="us-east-1",
        access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    )  # fmt: skip
    link = signer.presign("GET", "/test.txt", {}, datetime(2013, 5, 24, tzinfo=UTC), timedelta(days=1))
    signature = parse_qs(urlsplit(link).query)["X-Amz-Signature"]
    assert signature == ["aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"]
