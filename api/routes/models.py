"""/v1/models: the models that jobs can name, with their default options."""

from fastapi import APIRouter

from api.auth import Reader
from api.dependencies import ManifestFileDep
from api.routing import ApiRoute
from api.schemas.models import ModelPage, ModelView
from api.schemas.problems import ERRORS
from jobs.errors import ModelNotFound

router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.get("")
def page(principal: Reader, manifest_file: ManifestFileDep) -> ModelPage:
    """List every model of the manifest by name, also those imported since the service began."""
    manifest = manifest_file.current()
    return ModelPage(models=[ModelView.of(manifest.models[name]) for name in sorted(manifest.models)])


@router.get("/{name}")
def show(name: str, principal: Reader, manifest_file: ManifestFileDep) -> ModelView:
    """Return one model."""
    manifest = manifest_file.current()
    if name not in manifest.models:
        raise ModelNotFound(f"there is no model {name[:100]!r}")
    return ModelView.of(manifest.models[name])
