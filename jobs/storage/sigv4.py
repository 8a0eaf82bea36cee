"""Links to an S3 store that hold their user to certain headers: the minio SDK signs none but the host.

The form is AWS Signature Version 4 in the query, with a payload that is not signed: all stores know it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote, urlencode, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Whose links they are, and for which store."""

    endpoint: str  # http(s)://host:port as who gets the link reaches it
    region: str
    access_key: str
    secret_key: str

    def link(self, method: str, path: str, headers: Mapping[str, str], at: datetime, lifetime: timedelta) -> str:
        """A link for one request of that method, from `at` (UTC) on for a while; the request has to carry the headers."""
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
        signature = hmac.new(self.key(scope), text.encode(), "sha256").hexdigest()
        return f"{self.endpoint}{quote(path)}?{query}&X-Amz-Signature={signature}"

    def key(self, scope: str) -> bytes:
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return key
