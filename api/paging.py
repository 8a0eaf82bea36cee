"""Pages of lists. One row more than asked for is read, to know whether there is another page."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query

Row = TypeVar("Row")
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[int | None, Query(ge=1, lt=2**63, description="next_cursor of the page before")]


def split_page(rows: list[Row], limit: int, cursor: Callable[[Row], object]) -> tuple[list[Row], str | None]:
    """Return the first `limit` rows, and the cursor of the next page or None when there is none."""
    more = len(rows) > limit
    return rows[:limit], str(cursor(rows[limit - 1])) if more else None
