"""/v1/jobs/{id}/artifacts, frames, archive: what a job has stored, as lists, as single objects or as one file."""

from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, StreamingResponse

from api.archive import stream_zip
from api.auth import Reader
from api.dependencies import StorageDep, UnitOfWorkDep
from api.paging import Limit, split_page
from api.routes.parameters import Text
from api.routing import ApiRoute, stream_in_share
from api.schemas.artifacts import ArtifactList, ArtifactView, FramePage
from api.schemas.problems import ERRORS
from jobs.queue import jobs
from jobs.storage import artifacts as artifact_rows
from jobs.tables import Artifact

MAX_ARCHIVED = 10_000  # artifacts: one more than any job can have
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.get("/{job_id}/artifacts")
def artifacts(job_id: UUID, principal: Reader, unit_of_work: UnitOfWorkDep) -> ArtifactList:
    """List what the job has stored besides frames."""
    job = jobs.get(unit_of_work.session, principal.tenant, job_id)
    rows = artifact_rows.list_without_frames(unit_of_work.session, job)
    return ArtifactList(artifacts=[ArtifactView.of(artifact, job) for artifact in rows])


@router.get("/{job_id}/frames")
def frames(job_id: UUID, principal: Reader, unit_of_work: UnitOfWorkDep, cursor: Text = "", limit: Limit = 100) -> FramePage:
    """List the frames stored so far, by iteration. It works while the drag runs too."""
    job = jobs.get(unit_of_work.session, principal.tenant, job_id)
    rows = artifact_rows.list_frames(unit_of_work.session, job, after=cursor, limit=limit + 1)
    page, next_cursor = split_page(rows, limit, lambda frame: frame.name)
    return FramePage(frames=[ArtifactView.of(frame, job) for frame in page], next_cursor=next_cursor)


@router.get("/{job_id}/artifacts/{name:path}", status_code=307, response_class=RedirectResponse)
def download(job_id: UUID, name: Text, principal: Reader, unit_of_work: UnitOfWorkDep, storage: StorageDep) -> RedirectResponse:
    """Redirect to a link of the store. The link lives some minutes and lets its holder fetch parts of the object (Range)."""
    job = jobs.get(unit_of_work.session, principal.tenant, job_id)
    artifact = artifact_rows.get(unit_of_work.session, job, name)
    return RedirectResponse(storage.make_download_url(artifact.key, f"{job.public_id}-{name.replace('/', '-')}"))


@router.get("/{job_id}/archive", response_class=StreamingResponse, responses={200: {"content": {"application/zip": {}}}})
def archive(job_id: UUID, principal: Reader, unit_of_work: UnitOfWorkDep, storage: StorageDep) -> StreamingResponse:
    """Return everything the job has stored, as a zip that is made while it is sent."""
    job = jobs.get(unit_of_work.session, principal.tenant, job_id)
    rows: list[Artifact] = [
        *artifact_rows.list_without_frames(unit_of_work.session, job),
        *artifact_rows.list_frames(unit_of_work.session, job, after="", limit=MAX_ARCHIVED),
    ]
    headers = {"Content-Disposition": f'attachment; filename="{job.public_id}.zip"'}
    return StreamingResponse(stream_in_share(stream_zip(rows, storage)), media_type="application/zip", headers=headers)
