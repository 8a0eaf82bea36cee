"""Schema of the health checks."""

from pydantic import BaseModel


class Health(BaseModel):
    """Whether the service can work, with the reasons when it cannot."""

    status: str
    problems: list[str] = []
