"""A client of the HTTP API."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from cli.artifacts import ArtifactFolder
from cli.errors import CommandError

TERMINAL = ("succeeded", "failed", "canceled", "expired")
Job = dict[str, Any]  # a JobView as JSON


class Client:
    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=30, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()

    def submit(self, spec: dict[str, Any]) -> Job:
        """Raises CommandError with the service's reasons."""
        return self.json("POST", "/v1/jobs", json=spec)

    def submit_parts(self, spec: dict[str, Any], parts: dict[str, bytes]) -> Job:
        """The same with files: `image`, a photo, and `movable`, a mask."""
        return self.json("POST", "/v1/jobs", files={"job": json.dumps(spec).encode()} | parts)

    def upload(self, data: bytes) -> str:
        """Keep a photo, mask or latent there; returns the sha256 that jobs name it by."""
        return str(self.json("POST", "/v1/uploads", content=data)["sha256"])

    def get(self, job_id: str) -> Job:
        return self.json("GET", f"/v1/jobs/{job_id}")

    def wait(self, job_id: str, seen: Callable[[Job], None], limit_s: float, poll_s: float = 0.2) -> Job:
        """Poll until the job has ended, showing each look to `seen`. Raises CommandError when it takes longer."""
        until = time.monotonic() + limit_s
        while (job := self.get(job_id))["state"] not in TERMINAL:
            seen(job)
            if time.monotonic() > until:
                raise CommandError(f"job {job_id} was still {job['state']} after {limit_s:g} s")
            time.sleep(poll_s)
        seen(job)
        return job

    def download(self, job_id: str, folder: ArtifactFolder) -> Iterator[Path]:
        """Fetch every artifact into the folder, one at a time."""
        for artifact in self.artifacts(job_id):
            response = self.request("GET", artifact["url"])
            if response.status_code != 200:
                raise CommandError(f"{artifact['name']} could not be downloaded: HTTP {response.status_code}")
            yield folder.write(artifact["name"], response.content)

    def artifacts(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Everything the job has stored, frames last."""
        job = self.json("GET", f"/v1/jobs/{job_id}", params={"expand": "artifacts"})
        yield from job["artifacts"]
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            page = self.json("GET", job["links"]["frames"], params={"cursor": page["next_cursor"]})
            yield from page["frames"]

    def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Raises CommandError with the service's reasons."""
        response = self.request(method, path, **options)
        if not response.is_success:
            raise CommandError(reason(response))
        document: dict[str, Any] = response.json()
        return document

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            return self.http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise CommandError(f"the service does not answer: {error}") from error


def reason(response: httpx2.Response) -> str:
    """What the service said, in a sentence."""
    if "problem+json" in response.headers.get("content-type", ""):
        return f"the service refused: {response.json()['detail']}"
    return f"the service answered HTTP {response.status_code}"
