"""The API key of the commands on this machine."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from embedded.errors import StackError
from embedded.stack import Stack
from jobs.database import make_sessions
from jobs.errors import JobError, Unauthorized
from jobs.tables import DEFAULT_TENANT
from jobs.tenants import audit, keys
from jobs.tenants.keys import Scope

ALL_SCOPES = [Scope.READ, Scope.SUBMIT, Scope.ADMIN]
TEMPORARY = timedelta(days=1)  # lifetime of the key of a stack that keeps nothing


def local_key(stack: Stack) -> str:
    """Return the key that is kept beside the stack's data; make one where it is missing or no longer valid.

    Raises:
        StackError: the database does not answer.
    """
    file = stack.logs.parent / "key"
    with database(stack) as session:
        token = file.read_text().strip() if file.exists() else ""
        try:
            keys.authenticate(session, token)
        except Unauthorized:
            token = keys.create(session, DEFAULT_TENANT, "this machine", ALL_SCOPES, None if stack.durable else TEMPORARY)
            audit.record(session, DEFAULT_TENANT, f"operator:{getpass.getuser()}", "key.create", token.split("_")[1])
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                out.write(token)
    return token


@contextmanager
def database(stack: Stack) -> Iterator[Session]:
    """Open a transaction on the stack's database."""
    sessions = make_sessions(stack.settings().database_url)
    try:
        with sessions.begin() as session:
            yield session
    except (JobError, SQLAlchemyError) as error:
        raise StackError(str(error).splitlines()[0]) from error
    finally:
        sessions.kw["bind"].dispose()
