"""/v1/models: what can be edited with, and what a job takes when it does not say."""

from fastapi import APIRouter

from api.auth import Reader
from api.dependencies import ManifestDep
from api.schemas.jobs import ModelPage, ModelView
from api.schemas.problems import ERRORS
from jobs.errors import ModelNotFound

router = APIRouter(responses=ERRORS)


@router.get("")
def page(who: Reader, manifest: ManifestDep) -> ModelPage:
    """Every model of the manifest, by name; models that were imported background_thread too."""
    return ModelPage(models=[ModelView.of(manifest.models[name]) for name in sorted(manifest.models)])


@router.get("/{name}")
def show(name: str, who: Reader, manifest: ManifestDep) -> ModelView:
    if name not in manifest.models:
        raise ModelNotFound(f"there is no model {name[:100]!r}")
    return ModelView.of(manifest.models[name])
