"""Settings for the command: what is wrong with them is said in a sentence."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cli.errors import CommandError
from jobs.settings import Settings

PREFIX = "DRAGQUEUE_"


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises CommandError naming every variable that is missing or wrong."""
    given = {name: environment.get(PREFIX + name.upper()) for name in Settings.model_fields}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise CommandError("settings: " + "; ".join(map(sentence, error.errors()))) from error


def sentence(problem: Any) -> str:
    names = [PREFIX + str(part).upper() for part in problem["loc"]]
    return ": ".join([*names, problem["msg"].removeprefix("Value error, ")])
