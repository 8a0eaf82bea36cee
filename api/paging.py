"""Lists come in pages: one row more than asked for is read, to know whether there is another page."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query

Row = TypeVar("Row")
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[int | None, Query(ge=1, lt=2**63, description="next_cursor of the page before")]


def paged(found: list[Row], limit: int, cursor: Callable[[Row], object]) -> tuple[list[Row], str | None]:
    """A page, and what the next one begins after; None when there is none."""
    more = len(found) > limit
    return found[:limit], str(cursor(found[limit - 1])) if more else None
