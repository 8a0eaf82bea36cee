"""What jobs have stored: listed, one by one, or all in one file."""

from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, StreamingResponse

from api.archive import archived
from api.auth import Reader
from api.dependencies import StorageDep, UnitDep
from api.paging import Limit, paged
from api.routes.jobs import Text
from api.schemas.jobs import ArtifactList, ArtifactView, FramePage
from api.schemas.problems import ERRORS
from jobs.queue import jobs
from jobs.storage import artifacts as artifact_rows
from jobs.tables import Artifact

MAX_ARCHIVED = 10_000  # artifacts: one more than any job can have
router = APIRouter(responses=ERRORS)


@router.get("/{job_id}/artifacts")
def artifacts(job_id: UUID, who: Reader, unit: UnitDep) -> ArtifactList:
    """What the job has stored besides frames."""
    found = artifact_rows.list_without_frames(unit.session, jobs.get(unit.session, who.tenant, job_id))
    return ArtifactList(artifacts=[ArtifactView.of(artifact) for artifact in found])


@router.get("/{job_id}/frames")
def frames(job_id: UUID, who: Reader, unit: UnitDep, cursor: Text = "", limit: Limit = 100) -> FramePage:
    """The frames stored so far, by iteration; also while the drag runs."""
    found = artifact_rows.list_frames(unit.session, jobs.get(unit.session, who.tenant, job_id), after=cursor, limit=limit + 1)
    page, more = paged(found, limit, lambda frame: frame.name)
    return FramePage(frames=list(map(ArtifactView.of, page)), next_cursor=more)


@router.get("/{job_id}/artifacts/{name:path}", status_code=307, response_class=RedirectResponse)
def download(job_id: UUID, name: Text, who: Reader, unit: UnitDep, storage: StorageDep) -> str:
    """Redirect to a link of the store that lives some minutes and lets its holder fetch parts of the object (Range)."""
    artifact = artifact_rows.get(unit.session, jobs.get(unit.session, who.tenant, job_id), name)
    return storage.make_download_url(artifact.key, f"{job_id}-{name.replace('/', '-')}")


@router.get("/{job_id}/archive", response_class=StreamingResponse, responses={200: {"content": {"application/zip": {}}}})
def archive(job_id: UUID, who: Reader, unit: UnitDep, storage: StorageDep) -> StreamingResponse:
    """Everything the job has stored, as a zip that is made while it is sent."""
    job = jobs.get(unit.session, who.tenant, job_id)
    found: list[Artifact] = [
        *artifact_rows.list_without_frames(unit.session, job),
        *artifact_rows.list_frames(unit.session, job, after="", limit=MAX_ARCHIVED),
    ]
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.zip"'}
    return StreamingResponse(archived(found, storage), media_type="application/zip", headers=headers)
