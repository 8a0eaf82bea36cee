"""The rows of a batch in temporary files, in the text format of COPY, from when a line is checked until all are stored."""

import json
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Self
from uuid import UUID

import psycopg
from psycopg import sql
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs.tables import Job, Refusal

JOB_COLUMNS = (
    "id", "tenant", "batch", "custom_id", "model", "pool", "spec", "priority", "start_before", "parent", "root",
    "parent_client_id", "root_client_id",
)  # fmt: skip
REFUSAL_COLUMNS = ("batch", "line", "custom_id", "problems")
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
COPY_BYTES = 8 * 2**20  # of one statement: each has a time limit, and lies in memory


class BatchSpool:
    """The jobs and refusals of a batch that is not stored yet."""

    def __init__(self, batch: UUID) -> None:
        self.batch = batch
        self.jobs: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self.refusals: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.jobs.close()
        self.refusals.close()

    def add_job(self, row: dict[str, Any]) -> None:
        """Write the row of a job of the batch, whose spec is JSON already."""
        whole = row | {"batch": self.batch}
        self.jobs.write(copy_line([whole[name] for name in JOB_COLUMNS]))

    def add_refusal(self, line: int, custom_id: str | None, problems: list[dict[str, str]]) -> None:
        """Write the row of a line that is no job."""
        self.refusals.write(copy_line([self.batch, line, custom_id, json.dumps(problems)]))

    def copy_into(self, session: Session) -> None:
        """Copy the rows into their tables, in the order of the lines. Raises OperationalError."""
        cursor = session.connection().connection.cursor()
        for table, columns, file in ((Job, JOB_COLUMNS, self.jobs), (Refusal, REFUSAL_COLUMNS, self.refusals)):
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.__tablename__), names)
            try:
                for part in read_parts(file):
                    with cursor.copy(statement) as copy:
                        copy.write(part)
            except psycopg.OperationalError as error:  # SQLAlchemy does not see what the driver copies
                raise OperationalError(statement.as_string(), None, error) from error


def read_parts(file: IO[bytes]) -> Iterator[bytes]:
    """Yield whole lines, COPY_BYTES and one line at a time at most."""
    file.seek(0)
    while lines := file.readlines(COPY_BYTES):
        yield b"".join(lines)


def copy_line(values: list[object]) -> bytes:
    """Return a row in the text format of COPY."""
    return "\t".join("\\N" if value is None else str(value).translate(ESCAPES) for value in values).encode() + b"\n"
