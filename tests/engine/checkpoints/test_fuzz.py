"""Whatever is in a file, reading it ends in a network or in a sentence, within the budget.

`make test` reads 200 mutated files and every twentieth of those made by hand; `make fuzz` 2,000 and all of them.
"""

import json
import os
import pickletools
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoints.budget import MAX_OPERATIONS, ReadingBudget
from jobs.settings import REPOSITORY
from tests.engine.checkpoints.fuzz_child import LIMIT_S
from tests.engine.checkpoints.hostile_files import FAMILIES, HOSTILE
from tests.generators import DATA

EXAMPLES = int(os.environ.get("DRAGQUEUE_FUZZ_EXAMPLES", "200"))
STEP = 1 if EXAMPLES >= 2000 else 20
CHOSEN = [  # of the files made by hand
    name for family in FAMILIES for name in [name for name in HOSTILE if name.startswith(f"{family}: ")][::STEP]
]
FILES = {path.name: path.read_bytes() for path in sorted(DATA.glob("sg2-64-*")) if path.suffix != ".npz"}
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


PLACE = st.one_of(  # most of a file is numbers, in which nothing can go wrong: two thirds of the changes fall near its ends
    st.integers(0, 4095), st.integers(-4096, -1), st.integers(0, 2**20)
)
CHANGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("opcode"), PLACE, st.sampled_from(OPCODES)),
    st.tuples(st.just("swap"), PLACE, PLACE, st.integers(1, 16)),
)


def mutated(name, changes, cut):
    """A checkpoint with flipped bits, opcodes put among its bytes, stretches swapped, and perhaps its end cut off."""
    data = bytearray(FILES[name])
    for kind, place, *rest in changes:
        at = place % len(data)
        if kind == "flip":
            data[at] ^= 1 << rest[0]
        elif kind == "opcode":
            data[at : at + 1] = rest[0]
        else:
            other, length = rest[0] % len(data), rest[1]
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    return bytes(data if cut is None else data[: cut % len(data)])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Asks the process that reads each file in a child of its own."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.engine.checkpoints.fuzz_child"]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(data):
        (folder / "file").write_bytes(data)
        child.stdin.write(f"{folder / 'file'}\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
        left = {path.name for path in folder.iterdir()} - {"file"}
        for name in left:
            (folder / name).unlink()
        check(answer, left, len(data))
        return answer["said"]

    yield read
    child.stdin.close()
    child.stdout.close()
    assert child.wait(10) == 0


def check(answer, left, size):
    """Whatever the file is: a network or one printable sentence, within the budget and the limits, and nothing else."""
    said = answer["said"]
    assert said == "read" or said.startswith("refused: "), said
    assert said.isprintable(), said
    assert len(said) < 1200
    assert left <= ({"file.safetensors", "file.discriminator.safetensors"} if said == "read" else set())
    assert answer["operations"] <= MAX_OPERATIONS
    assert answer["bytes"] <= ReadingBudget.for_file(size).bytes_left
    assert answer["memory_bytes"] < 2**30
    assert answer["cpu_s"] < LIMIT_S


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(CHANGE, min_size=1, max_size=12),
    cut=st.one_of(st.none(), st.none(), st.none(), PLACE),
)
def test_a_mutated_file_is_read_or_refused_and_nothing_else(reader, name, changes, cut):
    reader(mutated(name, changes, cut))


@pytest.mark.parametrize("name", CHOSEN, ids=lambda name: ascii(name[:60]))
def test_a_file_made_by_hand_is_read_or_refused_and_nothing_else(reader, name):
    reader(HOSTILE[name]())


def test_there_are_hundreds_of_them_and_each_family_is_read_in_small_too():
    assert len(HOSTILE) >= 250
    assert {name.partition(":")[0] for name in CHOSEN} == set(FAMILIES)


def test_the_child_tells_when_something_forbidden_is_tried(tmp_path):
    """The watch itself works: a reader that imported or ran something would be seen."""
    (tmp_path / "file").write_bytes(b"")
    program = (
        "import os; from pathlib import Path; from tests.engine.checkpoints import fuzz_child\n"
        "fuzz_child.read_generator_file = lambda *_: os.system('true')\n"
        f"print(fuzz_child.outcome(Path({str(tmp_path / 'file')!r})))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "forbidden: os.system" in answer.stdout
