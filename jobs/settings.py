"""What operators set, all by environment variables named DRAGQUEUE_*. Read in composition roots only."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.queue.retry_policy import RetryPolicy
from jobs.tables import DEFAULT_POOL
from jobs.tenants.quotas import Quotas
from jobs.webhooks.egress import EgressPolicy, Network

MOST_SLOTS = 64
POOL = r"^[a-z0-9][a-z0-9_-]{0,39}$"
EXAMPLE_SECRETS = {"minioadmin", "changeme", "changethis", "secret", "password"}
REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Everything a process of Dragqueue needs to know. Durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="DRAGQUEUE_", frozen=True)

    environment: Literal["development", "production"] = "production"
    database_url: str  # postgresql+psycopg://...
    redis_url: str  # redis://... or redis+socket:///path
    s3_endpoint: str  # http(s)://host:port as workers and API reach it
    s3_public_endpoint: str | None = None  # as clients reach it, for presigned URLs; default s3_endpoint
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_bucket: str = "dragqueue"
    s3_region: str = "us-east-1"
    presigned_url_s: int = Field(default=300, ge=1, le=900)
    checkpoints: Path = REPOSITORY / "checkpoints"  # folder with manifest.toml
    lpips_file: Path | None = None  # the lpips package's state dict of LPIPS(net="squeeze"); for inversions
    c2pa_certificate: Path | None = None  # PEM, the signer's own and then those that vouch for it; the reconciler reads it
    c2pa_key: Path | None = None  # PEM, not encrypted
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = Field(default=None, ge=1)  # of one worker's arithmetic; default all cores
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS)  # jobs of one model that a worker runs at once
    max_body_bytes: int = Field(default=32 * 10**6, ge=1024)  # photos of up to 30 MB
    max_batch_bytes: int = Field(default=200 * 10**6, ge=1024)
    lease_s: float = Field(default=60.0, gt=0)
    beat_s: float = Field(default=10.0, gt=0)  # renewals while a phase is silent
    sweep_s: float = Field(default=10.0, gt=0)  # between two looks of the reconciler
    progress_interval_s: float = Field(default=0.5, ge=0)  # between two progress writes
    load_limit_s: float = Field(default=300.0, gt=0)  # a silent phase longer than this loses the lease
    drain_grace_s: float = Field(default=5.0, ge=0)  # for the job at hand, once a worker is asked to end
    max_attempts: int = Field(default=3, ge=1)  # failures a job may have
    retry_delay_s: float = Field(default=1.0, ge=0)  # a job rests after its first failure; doubled by each further one
    retry_delay_limit_s: float = Field(default=60.0, ge=0)
    checkpoint_s: float = Field(default=10.0, gt=0)  # between two checkpoints of a running job
    tuning_checkpoint_s: float = Field(default=30.0, gt=0)  # of one that tunes, which weigh three times the generator
    patience_s: float = Field(default=120.0, ge=0)  # a running job waits that long for a store or database that is away
    tidy_after_s: float = Field(default=600.0, ge=0)  # what a finished job's earlier attempts left is deleted after that
    # of each tenant, unless its row says otherwise
    max_queued: int | None = Field(default=100_000, ge=1)  # jobs that wait
    max_uploads: int | None = Field(default=100_000, ge=1)
    max_stored_bytes: int | None = Field(default=None, ge=1)
    # of each key, unless its tenant's row says otherwise
    max_streams: int = Field(default=200, ge=1)  # of events, for each API process
    requests_per_minute: int = Field(default=12_000, ge=1)
    submits_per_minute: int = Field(default=6_000, ge=1)  # of them
    webhook_allow_http: bool = False  # or https alone
    webhook_allowed_networks: Annotated[tuple[Network, ...], NoDecode] = ()  # besides public addresses: 10.1.0.0/16,fd00::/8
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=60)  # of a delivery, from the look-up of the host on
    webhook_rest_scale: float = Field(default=1.0, ge=0)  # of the rests between its tries; for tests
    upload_retain_s: float = Field(default=30 * 86_400, ge=60)  # after the last submission that named an upload
    pool: str = Field(default=DEFAULT_POOL, pattern=POOL)  # a worker's
    # models that a worker keeps, not counting their bfloat16 copies; the one in use always
    model_cache_bytes: int = Field(default=4 * 10**9, ge=0)

    @property
    def retries(self) -> RetryPolicy:
        return RetryPolicy(max_attempts=self.max_attempts, delay_s=self.retry_delay_s, delay_limit_s=self.retry_delay_limit_s)

    @property
    def quotas(self) -> Quotas:
        return Quotas(max_queued=self.max_queued, max_uploads=self.max_uploads, max_stored_bytes=self.max_stored_bytes)

    @property
    def destinations(self) -> EgressPolicy:
        return EgressPolicy(allow_http=self.webhook_allow_http, allowed_networks=self.webhook_allowed_networks)

    @field_validator("webhook_allowed_networks", mode="before")
    @classmethod
    def split_at_commas(cls, networks: object) -> object:
        return [part.strip() for part in networks.split(",") if part.strip()] if isinstance(networks, str) else networks

    @field_validator("database_url")
    @classmethod
    def postgres_by_psycopg(cls, url: str) -> str:
        """postgres:// and postgresql:// mean the one driver there is."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
            raise ValueError("must be postgresql://user:password@host/database")
        return f"postgresql+psycopg://{rest}"

    @model_validator(mode="after")
    def refuse_example_secrets(self) -> Self:
        if self.environment == "production" and self.s3_secret_key.get_secret_value().lower() in EXAMPLE_SECRETS:
            raise ValueError("DRAGQUEUE_S3_SECRET_KEY is a well-known example; set a secret of your own")
        return self

    @model_validator(mode="after")
    def certificate_with_its_key(self) -> Self:
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("DRAGQUEUE_C2PA_CERTIFICATE and DRAGQUEUE_C2PA_KEY must be set together")
        return self

    @model_validator(mode="after")
    def beat_within_lease(self) -> Self:
        if self.beat_s >= self.lease_s:
            raise ValueError(f"DRAGQUEUE_BEAT_S ({self.beat_s} s) must be shorter than DRAGQUEUE_LEASE_S ({self.lease_s} s)")
        return self
