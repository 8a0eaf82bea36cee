"""The settings of operators: environment variables named DRAGQUEUE_*. They are read in composition roots only."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.tables import DEFAULT_POOL, POOL_PATTERN

Network = IPv4Network | IPv6Network
MAX_SLOTS = 64
EXAMPLE_SECRETS = {"minioadmin", "changeme", "changethis", "secret", "password"}
REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The settings of all processes. Durations are in seconds."""

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
    c2pa_certificate: Path | None = None  # PEM: the signer's own, then its issuers'; read by the reconciler
    c2pa_key: Path | None = None  # PEM, not encrypted
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = Field(default=None, ge=1)  # of PyTorch in one worker; default all cores
    slots: int = Field(default=1, ge=1, le=MAX_SLOTS)  # jobs of one model that a worker runs at once
    max_body_bytes: int = Field(default=32 * 10**6, ge=1024)  # photos of up to 30 MB
    max_batch_bytes: int = Field(default=200 * 10**6, ge=1024)
    decoders: int | None = Field(
        default=None, ge=1
    )  # children of an API process that decode uploads; default all cores, at least 2
    lease_s: float = Field(default=60.0, gt=0)
    beat_s: float = Field(default=10.0, gt=0)  # renewals while a phase is silent
    sweep_s: float = Field(default=10.0, gt=0)  # between two looks of the reconciler
    progress_interval_s: float = Field(default=0.5, ge=0)  # between two progress writes
    load_limit_s: float = Field(default=300.0, gt=0)  # a silent phase that is longer loses the lease
    drain_grace_s: float = Field(default=5.0, ge=0)  # for the running job, once a worker is asked to end
    max_attempts: int = Field(default=3, ge=1)  # failures that a job may have
    retry_delay_s: float = Field(default=1.0, ge=0)  # after a job's first failure; doubled by each further one
    retry_delay_limit_s: float = Field(default=60.0, ge=0)
    # the two keep the names of their environment variables, from when a resume state was called a checkpoint
    checkpoint_s: float = Field(default=10.0, gt=0)  # between two saves of a running job's resume state
    tuning_checkpoint_s: float = Field(
        default=30.0, gt=0
    )  # of a job that tunes, whose resume state is three times the generator's size
    patience_s: float = Field(default=120.0, ge=0)  # how long a running job waits for a store or database that is away
    tidy_after_s: float = Field(default=600.0, ge=0)  # after which the objects of an ended job's earlier attempts are deleted
    # limits of each tenant; its row may say otherwise
    max_queued: int | None = Field(default=100_000, ge=1)  # queued jobs
    max_uploads: int | None = Field(default=100_000, ge=1)
    max_stored_bytes: int | None = Field(default=None, ge=1)
    # limits of each key; its tenant's row may say otherwise
    max_open_requests: int = Field(default=512, ge=1)  # of a tenant, streams and waiting ones too, for each API process
    max_connections: int = Field(default=2_000, ge=10)  # of clients, for each API process
    max_streams: int = Field(default=200, ge=1)  # of events, for each API process
    requests_per_minute: int = Field(default=12_000, ge=1)
    submits_per_minute: int = Field(default=6_000, ge=1)  # of them
    webhook_allow_http: bool = False  # otherwise https only
    webhook_allowed_networks: Annotated[tuple[Network, ...], NoDecode] = ()  # besides public addresses: 10.1.0.0/16,fd00::/8
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=60)  # of an attempt, from the look-up of the host on
    webhook_concurrency: int = Field(default=128, ge=8, le=1024)  # attempts of a reconciler at once, each in a thread that waits
    webhook_rest_scale: float = Field(default=1.0, ge=0)  # factor of the delays between attempts; for tests
    upload_retain_s: float = Field(default=30 * 86_400, ge=60)  # after the last submission that named an upload
    pool: str = Field(default=DEFAULT_POOL, pattern=POOL_PATTERN)  # of a worker
    # models that a worker keeps, without their bfloat16 copies; the model in use is always kept
    model_cache_bytes: int = Field(default=4 * 10**9, ge=0)

    @field_validator("webhook_allowed_networks", mode="before")
    @classmethod
    def split_at_commas(cls, networks: object) -> object:
        """Split the text of the environment variable into networks."""
        return [part.strip() for part in networks.split(",") if part.strip()] if isinstance(networks, str) else networks

    @field_validator("database_url")
    @classmethod
    def use_psycopg(cls, url: str) -> str:
        """Read postgres:// and postgresql:// as URLs of psycopg, the only driver."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
            raise ValueError("must be postgresql://user:password@host/database")
        return f"postgresql+psycopg://{rest}"

    @model_validator(mode="after")
    def refuse_example_secrets(self) -> Self:
        """Refuse a secret from the documentation, outside development."""
        if self.environment == "production" and self.s3_secret_key.get_secret_value().lower() in EXAMPLE_SECRETS:
            raise ValueError("DRAGQUEUE_S3_SECRET_KEY is a well-known example; set a secret of your own")
        return self

    @model_validator(mode="after")
    def check_certificate_has_key(self) -> Self:
        """Refuse a certificate without its key, and a key without its certificate."""
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("DRAGQUEUE_C2PA_CERTIFICATE and DRAGQUEUE_C2PA_KEY must be set together")
        return self

    @model_validator(mode="after")
    def check_beat_within_lease(self) -> Self:
        """Refuse renewals that come after the lease has run out."""
        if self.beat_s >= self.lease_s:
            raise ValueError(f"DRAGQUEUE_BEAT_S ({self.beat_s} s) must be shorter than DRAGQUEUE_LEASE_S ({self.lease_s} s)")
        return self
