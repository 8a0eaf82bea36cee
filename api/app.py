"""The ASGI application: builds every client once and adds the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api.auth import CACHED_S, ApiKeyCache, RateLimits
from api.change_notifier import ChangeNotifier
from api.concurrency import THREADS, OpenCount
from api.errors import add_error_handlers
from api.openapi import complete_openapi, operation_id
from api.readiness import Readiness
from api.routes import account, artifacts, batches, events, health, jobs, models, uploads, webhooks
from api.routing import ClientLimits
from api.transport import Pace
from jobs.database import make_sessions
from jobs.models.manifest import ManifestFile
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.storage import decoding
from jobs.storage.objects import REQUEST_TIMEOUTS, Storage
from jobs.tenants.quotas import QueueQuota, Quotas

CONNECTIONS = THREADS + 8  # one for each route's thread, and some for keys and for changes of jobs
LOCK_TIMEOUT_MS = 1_000  # of a row that another request holds


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Close what the application has opened."""
    yield
    await app.state.rate_limits.close()


def create_app(settings: Settings | None = None, api_key_cached_s: float = CACHED_S) -> FastAPI:
    """Create the application.

    Args:
        settings: by default those of the environment.
        api_key_cached_s: how long an API key is taken for valid without a query.
    """
    settings = settings or Settings()  # type: ignore[call-arg]  # from the environment
    app = FastAPI(
        title="Dragqueue", version=version("dragqueue"), description="Point-based image editing with DragGAN, as jobs.",
        generate_unique_id_function=operation_id, lifespan=lifespan,
    )  # fmt: skip
    app.state.settings = settings
    app.state.manifest_file = ManifestFile(settings.checkpoints)
    app.state.sessions = make_sessions(settings.database_url, CONNECTIONS, LOCK_TIMEOUT_MS, idle=CONNECTIONS)
    app.state.storage = Storage.from_settings(settings, REQUEST_TIMEOUTS)
    app.state.broker = Broker(settings.redis_url)
    app.state.api_key_cache = ApiKeyCache(app.state.sessions, api_key_cached_s)
    app.state.rate_limits = RateLimits(settings)
    app.state.change_notifier = ChangeNotifier(app.state.sessions)
    app.state.open_streams = OpenCount("streams")
    app.state.client_limits = ClientLimits.from_settings(settings)
    if settings.decoders is not None:
        decoding.TURNS.resize(settings.decoders)
    app.state.queue_quota = QueueQuota(Quotas.from_settings(settings))
    app.state.readiness = Readiness(app.state.sessions, app.state.broker, app.state.storage)
    app.add_middleware(Pace)
    add_error_handlers(app)
    for resource in (jobs, artifacts, events):
        app.include_router(resource.router, prefix="/v1/jobs", tags=["jobs"])
    app.include_router(batches.router, prefix="/v1/batches", tags=["batches"])
    app.include_router(uploads.router, prefix="/v1/uploads", tags=["uploads"])
    app.include_router(models.router, prefix="/v1/models", tags=["models"])
    app.include_router(webhooks.router, prefix="/v1/webhooks", tags=["webhooks"])
    app.include_router(account.router, prefix="/v1", tags=["account"])
    app.include_router(health.router, tags=["health"])
    complete_openapi(app)
    return app
