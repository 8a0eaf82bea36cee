"""Presigned URLs with signed headers: AWS Signature Version 4 in the query, with an unsigned payload.

The minio SDK signs no header but the host, so its URLs cannot require a length or a checksum (decision 0019).
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote, urlencode, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, kw_only=True)
class UrlSigner:
    """A key pair that signs URLs of one store."""

    endpoint: str  # http(s)://host:port as the holder of the link reaches it
    region: str
    access_key: str
    secret_key: str

    def presign(self, method: str, path: str, headers: Mapping[str, str], at: datetime, lifetime: timedelta) -> str:
        """Return a URL for requests with this method and these headers, valid from `at` (UTC) on for the lifetime."""
        scope = f"{at:%Y%m%d}/{self.region}/s3/aws4_request"
        signed = {name.lower(): value for name, value in headers.items()} | {"host": urlsplit(self.endpoint).netloc}
        names = ";".join(sorted(signed))
        query = urlencode(
            {
                "X-Amz-Algorithm": ALGORITHM,
                "X-Amz-Credential": f"{self.access_key}/{scope}",
                "X-Amz-Date": f"{at:%Y%m%dT%H%M%SZ}",
                "X-Amz-Expires": str(int(lifetime.total_seconds())),
                "X-Amz-SignedHeaders": names,
            },
            quote_via=quote,
            safe="",
        )
        lines = [f"{name}:{signed[name]}" for name in sorted(signed)]
        request = "\n".join([method, quote(path), query, *lines, "", names, "UNSIGNED-PAYLOAD"])
        text = "\n".join([ALGORITHM, f"{at:%Y%m%dT%H%M%SZ}", scope, hashlib.sha256(request.encode()).hexdigest()])
        signature = hmac.new(self.signing_key(scope), text.encode(), "sha256").hexdigest()
        return f"{self.endpoint}{quote(path)}?{query}&X-Amz-Signature={signature}"

    def signing_key(self, scope: str) -> bytes:
        """Derive the key of a scope: date, region, service."""
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return key
