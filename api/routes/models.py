"""/v1/models: the models that jobs can name, with their default options."""

from fastapi import APIRouter

from api.auth import Reader
from api.dependencies import ManifestDep
from api.schemas.models import ModelPage, ModelView
from api.schemas.problems import ERRORS
from jobs.errors import ModelNotFound

router = APIRouter(responses=ERRORS)


@router.get("")
def page(principal: Reader, manifest: ManifestDep) -> ModelPage:
    """List every model of the manifest by name, also those imported since the service began."""
    return ModelPage(models=[ModelView.of(manifest.models[name]) for name in sorted(manifest.models)])


@router.get("/{name}")
def show(name: str, principal: Reader, manifest: ManifestDep) -> ModelView:
    """Return one model."""
    if name not in manifest.models:
        raise ModelNotFound(f"there is no model {name[:100]!r}")
    return ModelView.of(manifest.models[name])
