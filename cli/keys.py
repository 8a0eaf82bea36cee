"""`dragqueue keys` and `dragqueue tenants`: API keys and quotas, for operators with access to the database."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cli.errors import CommandError
from jobs.database import make_sessions
from jobs.environment import read_settings
from jobs.errors import JobError
from jobs.tables import DEFAULT_TENANT, Tenant
from jobs.tenants import audit, keys
from jobs.tenants.keys import Scope

app = typer.Typer(help="API keys: dq_ID_SECRET. Settings from the environment.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants and their quotas. Settings from the environment.", no_args_is_help=True)
DAY_S = 86_400
LIMITS = (
    "max_queued",
    "max_running",
    "max_uploads",
    "max_stored_bytes",
    "max_streams",
    "requests_per_minute",
    "submits_per_minute",
)
TenantName = Annotated[str, typer.Option("--tenant", help="Whose; made where there is none.", metavar="NAME")]


@app.command()
def create(
    tenant: TenantName = DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    scope: Annotated[list[Scope], typer.Option(help="What it may do; again for several.")] = [Scope.READ, Scope.SUBMIT],  # noqa: B006
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="It expires after; default never.")] = None,
) -> None:
    """Make a key and print it: it is never shown again."""
    with database() as session:
        token = keys.create(session, tenant, name, scope, None if days is None else timedelta(days=days))
        audit.record(session, tenant, operator(), "key.create", key_id_of(token))
    typer.echo(token)


@app.command("list")
def list_(tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None) -> None:
    """Show all keys, without their secrets."""
    table = Table("id", "tenant", "name", "scopes", "created", "expires", "revoked", "last used")
    with database() as session:
        for key in keys.list_keys(session, tenant):
            times = (key.created_at, key.expires_at, key.revoked_at, key.last_used_at)
            shown = [f"{time:%Y-%m-%d %H:%M}" if time else "-" for time in times]
            table.add_row(key.id, key.tenant, key.name, " ".join(key.scopes), *shown)
    Console().print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Make a key invalid, within five seconds everywhere."""
    with database() as session:
        key = keys.revoke(session, key_id)
        audit.record(session, key.tenant, operator(), "key.revoke", key_id)
    typer.echo(f"{key_id} is revoked")


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    grace_s: Annotated[int, typer.Option(min=0, max=30 * DAY_S, help="The old key stays valid so long.")] = DAY_S,
) -> None:
    """Make a key that replaces another and print it."""
    with database() as session:
        token = keys.rotate(session, key_id, timedelta(seconds=grace_s))
        audit.record(session, keys.get(session, key_id).tenant, operator(), "key.rotate", f"{key_id} -> {key_id_of(token)}")
    typer.echo(token)


@tenants.command("list")
def list_tenants() -> None:
    """Show all tenants and their limits; a dash stands for the limit of the settings."""
    table = Table("tenant", "stored bytes", *LIMITS)
    with database() as session:
        for tenant in session.scalars(select(Tenant).order_by(Tenant.id)):
            limits = [getattr(tenant, name) for name in LIMITS]
            table.add_row(tenant.id, str(tenant.stored_bytes), *("-" if limit is None else str(limit) for limit in limits))
    Console().print(table)


@tenants.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(metavar="NAME")],
    limit: Annotated[str, typer.Argument(help=f"One of {', '.join(LIMITS)}.")],
    value: Annotated[str, typer.Argument(help="A number, or - for what the settings say.")],
) -> None:
    """Change one limit of a tenant."""
    if limit not in LIMITS:
        raise CommandError(f"there is no limit {limit}: take one of {', '.join(LIMITS)}")
    most = 2**63 - 1 if limit == "max_stored_bytes" else 2**31 - 1
    if value != "-" and not (value.isdecimal() and 0 < int(value) <= most):
        raise CommandError(f"{limit} must be a number from 1 to {most}, or -, got {value}")
    with database() as session:
        row = session.get(Tenant, tenant)
        if row is None:
            raise CommandError(f"there is no tenant {tenant}")
        setattr(row, limit, None if value == "-" else int(value))
        audit.record(session, tenant, operator(), f"tenant.{limit}", value)


@contextmanager
def database() -> Iterator[Session]:
    """Open a transaction on the database of the environment.

    Raises:
        CommandError: the database does not answer, or refuses.
    """
    sessions = make_sessions(read_settings(os.environ).database_url)
    try:
        with sessions.begin() as session:
            yield session
    except (JobError, SQLAlchemyError) as error:
        raise CommandError(str(error).splitlines()[0]) from error
    finally:
        sessions.kw["bind"].dispose()


def operator() -> str:
    """Return who runs the command, as the audit names them."""
    return f"operator:{getpass.getuser()}"


def key_id_of(token: str) -> str:
    """Return the id of a key, which is not secret."""
    return token.split("_")[1]
