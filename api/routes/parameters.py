"""Types of parameters that several routes share."""

from typing import Annotated

from fastapi import Header
from pydantic import StringConstraints

from api.openapi import NO_NUL

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern="^[ -~]+$")]
Text = Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL)]
