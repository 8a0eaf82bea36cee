"""One service for all attacks. DRAGQUEUE_ABUSE_SECONDS, the length of each, makes it the full set with its figures."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.abuse.arena import Arena, open_arena
from tests.abuse.report import Figures, measure_quiet

SECONDS = os.environ.get("DRAGQUEUE_ABUSE_SECONDS")
SMALL = SECONDS is None
OUT = Path(os.environ.get("DRAGQUEUE_ABUSE_OUT", "runs/abuse"))

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells every request of the victim's


@pytest.fixture(scope="session")
def arena(tmp_path_factory) -> Iterator[Arena]:
    with open_arena(tmp_path_factory.mktemp("checkpoints"), float(SECONDS or 1)) as arena:
        yield arena


@pytest.fixture(scope="session")
def figures(arena, tmp_path_factory) -> Figures:
    """What is recorded, beginning with the victim alone."""
    folder = tmp_path_factory.mktemp("abuse") if SMALL else OUT
    folder.mkdir(parents=True, exist_ok=True)
    return Figures(folder, measure_quiet(arena, seconds=2 if SMALL else 15))
