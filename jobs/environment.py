"""The settings as environment variables give them; what is wrong with them is said in one sentence."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from jobs.settings import Settings

ENV_PREFIX = "DRAGQUEUE_"


class SettingsInvalid(Exception):
    """The environment does not hold valid settings; the message names every variable that is missing or wrong."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings of an environment.

    Raises:
        SettingsInvalid: a variable is missing or wrong.
    """
    given = {name: environment.get(ENV_PREFIX + name.upper()) for name in Settings.model_fields}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsInvalid("settings: " + "; ".join(map(describe_problem, error.errors()))) from error


def describe_problem(problem: Any) -> str:
    """Return one of pydantic's errors as text, with the names of the variables it is about."""
    names = [ENV_PREFIX + str(part).upper() for part in problem["loc"]]
    return ": ".join([*names, problem["msg"].removeprefix("Value error, ")])
