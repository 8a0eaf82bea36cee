"""A client of the HTTP API."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

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
        return self.answer(self.http.post("/v1/jobs", json=spec))

    def get(self, job_id: str) -> Job:
        return self.answer(self.http.get(f"/v1/jobs/{job_id}"))

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

    def download(self, job_id: str, folder: Path) -> Iterator[Path]:
        """Fetch every artifact into the folder, one at a time; each appears whole or not at all."""
        for artifact in self.artifacts(job_id):
            path = folder / artifact["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            response = self.http.get(artifact["url"])
            if response.status_code != 200:
                raise CommandError(f"{artifact['name']} could not be downloaded: HTTP {response.status_code}")
            part = path.with_name(path.name + ".part")
            part.write_bytes(response.content)
            part.rename(path)
            yield path

    def artifacts(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Everything the job has stored, frames last."""
        job = self.answer(self.http.get(f"/v1/jobs/{job_id}", params={"expand": "artifacts"}))
        yield from job["artifacts"]
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            page = self.answer(self.http.get(job["links"]["frames"], params={"cursor": page["next_cursor"]}))
            yield from page["frames"]

    def answer(self, response: httpx2.Response) -> Job:
        if response.is_success:
            job: Job = response.json()
            return job
        raise CommandError(reason(response))


def reason(response: httpx2.Response) -> str:
    """What the service said, in a sentence."""
    if "problem+json" in response.headers.get("content-type", ""):
        return f"the service refused: {response.json()['detail']}"
    return f"the service answered HTTP {response.status_code}"
