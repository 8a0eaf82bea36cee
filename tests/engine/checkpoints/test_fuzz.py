"""Whatever is in a file, reading it ends in a network or in a sentence: 200 mutated files here, 2,000 with `make fuzz`."""

import os
import pickletools
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.settings import REPOSITORY
from tests.generators import DATA

EXAMPLES = int(os.environ.get("DRAGQUEUE_FUZZ_EXAMPLES", "200"))
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
        said = child.stdout.readline().rstrip("\n")
        left = {path.name for path in folder.iterdir()} - {"file"}
        for name in left:
            (folder / name).unlink()
        return said, left

    yield read
    child.stdin.close()
    child.stdout.close()
    assert child.wait(10) == 0


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(CHANGE, min_size=1, max_size=12),
    cut=st.one_of(st.none(), st.none(), st.none(), PLACE),
)
def test_a_mutated_file_is_read_or_refused_and_nothing_else(reader, name, changes, cut):
    said, left = reader(mutated(name, changes, cut))
    assert said == "read" or said.startswith("refused: "), said
    assert left <= ({"file.safetensors", "file.discriminator.safetensors"} if said == "read" else set())


def test_the_child_tells_when_something_forbidden_is_tried(tmp_path):
    """The watch itself works: a reader that imported or ran something would be seen."""
    program = (
        "import os; from pathlib import Path; from tests.engine.checkpoints import fuzz_child\n"
        "fuzz_child.read_generator_file = lambda path: os.system('true')\n"
        f"print(fuzz_child.outcome(Path({str(tmp_path / 'file')!r})))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "forbidden: os.system" in answer.stdout
