import os
from itertools import pairwise

import pytest

from embedded.errors import ServerFailed
from embedded.processes import start
from embedded.stack import Stack
from embedded.supervision import MAX_RESTARTS, RESTART_WINDOW_S, Supervisor


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def stack(tmp_path):
    stack = Stack({}, tmp_path)
    for name in ("steady", "frail"):
        command = ["sh", "-c", "echo started; exec sleep 60"]
        stack.add(start(name, command, log=tmp_path / f"{name}.log", environment={"PATH": os.defpath}))
    yield stack
    for child in stack.children:
        child.stop()


@pytest.fixture
def said():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def supervisor(stack, said, clock):
    return Supervisor(stack, said.append, clock)


def process(stack, name):
    return next(child.process for child in stack.children if child.name == name)


def kill(stack, name):
    process(stack, name).kill()
    process(stack, name).wait()


def look(supervisor, clock, seconds):
    """Look often while so many seconds pass."""
    until = clock.now + seconds
    while clock.now < until:
        supervisor.look()
        clock.now += 0.1


def test_what_has_ended_is_started_again_after_a_pause_with_one_line(stack, supervisor, clock, said, tmp_path):
    steady = process(stack, "steady")
    kill(stack, "frail")
    look(supervisor, clock, 0.3)
    assert process(stack, "frail").poll() is not None
    look(supervisor, clock, 1)
    assert process(stack, "frail").poll() is None
    assert process(stack, "steady") is steady
    (line,) = said
    assert line.startswith("frail ended with exit code -9 and is started again in 0.")
    assert line.endswith(f"its log is {tmp_path / 'frail.log'}")


def test_each_pause_is_longer(stack, supervisor, clock, said):
    for _ in range(MAX_RESTARTS):
        kill(stack, "frail")
        look(supervisor, clock, 3)
    pauses = [float(line.split(" in ")[1].split()[0]) for line in said]
    assert all(longer > 1.3 * pause for pause, longer in pairwise(pauses))


def test_what_ends_a_fourth_time_within_a_minute_ends_all(stack, supervisor, clock, said, tmp_path):
    for _ in range(MAX_RESTARTS):
        kill(stack, "frail")
        look(supervisor, clock, 3)
    kill(stack, "steady")  # counted for itself
    kill(stack, "frail")
    with pytest.raises(ServerFailed, match=rf"^frail ended with exit code -9; its log is {tmp_path / 'frail.log'}$"):
        look(supervisor, clock, 3)
    assert len(said) <= MAX_RESTARTS + 1


def test_a_minute_later_the_count_begins_anew(stack, supervisor, clock, said):
    for _ in range(2 * MAX_RESTARTS):
        kill(stack, "frail")
        look(supervisor, clock, RESTART_WINDOW_S / 2)
    assert process(stack, "frail").poll() is None
    assert len(said) == 2 * MAX_RESTARTS
