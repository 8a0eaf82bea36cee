"""What a check reports: how it is, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as it should
    PROBLEM = "problem"  # jobs fail or wait because of it


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""  # what to do


Findings = Iterator[Finding]


def ok(name: str, found: str, advice: str = "") -> Finding:
    """Return a finding with nothing wrong."""
    return Finding(name, Verdict.OK, found, advice)


def warning(name: str, found: str, advice: str) -> Finding:
    """Return a finding that works, but not as it should."""
    return Finding(name, Verdict.WARNING, found, advice)


def problem(name: str, found: str, advice: str) -> Finding:
    """Return a finding because of which jobs fail or wait."""
    return Finding(name, Verdict.PROBLEM, found, advice)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return str(error).partition("\n")[0] or type(error).__name__


def run_check(name: str, check: Callable[..., Finding], *arguments: Any, advice: str) -> Finding:
    """Return what a check finds; an error that it raises is a problem, with the advice."""
    try:
        return check(name, *arguments)
    except Exception as error:  # whatever the error is, it is a finding
        return problem(name, first_line(error), advice)
