"""The options that lead to a service, for every command that talks to one."""

from typing import Annotated

import typer
from dragqueue_client import Client

from cli.errors import CommandError

Url = Annotated[str, typer.Option(envvar="DRAGQUEUE_URL", help="Of the service.")]
Key = Annotated[str, typer.Option(envvar="DRAGQUEUE_KEY", help="An API key, dq_...; `dragqueue up` prints one.")]
URL, KEY = "http://127.0.0.1:8000", ""


def connect(url: str, key: str) -> Client:
    """Return a client of the service.

    Raises:
        CommandError: there is no key.
    """
    if not key:
        raise CommandError(
            "no key: set DRAGQUEUE_KEY or give --key; `dragqueue up` prints one, `dragqueue keys create` makes one"
        )
    return Client(url, key)
