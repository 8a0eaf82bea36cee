"""The base of schemas that are filled from rows of the database."""

from pydantic import BaseModel, ConfigDict


class Row(BaseModel):
    """A schema whose fields are read from the attributes of a row."""

    model_config = ConfigDict(from_attributes=True)
