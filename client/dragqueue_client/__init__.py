"""A typed Python client of the Dragqueue HTTP API: `Client`, and `AsyncClient` with the same methods.

with Client("http://127.0.0.1:8000", key="dq_...") as client:
    job = client.submit({"model": "demo-faces", "source": {"seed": 3}, "points": [...]})
    job = client.wait(job.id)
    for path in client.download(job.id, Path("out")):
        print(path)
"""

from dragqueue_client.asynchronous import AsyncClient
from dragqueue_client.errors import ClientError, DownloadDamaged, RequestRefused, ServiceUnavailable, WaitTimeout
from dragqueue_client.models import Artifact, Batch, BatchLine, Event, Job, JobSummary, Model, QueuePosition, Upload, Usage
from dragqueue_client.synchronous import Client

__all__ = [
    "Artifact", "AsyncClient", "Batch", "BatchLine", "Client", "ClientError", "DownloadDamaged", "Event", "Job", "JobSummary",
    "Model", "QueuePosition", "RequestRefused", "ServiceUnavailable", "Upload", "Usage", "WaitTimeout",
]  # fmt: skip
