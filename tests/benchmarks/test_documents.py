"""That the documents agree with the programs: their command lines parse, their speed tables are the measurement's."""

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import typer

from cli.main import app
from jobs.settings import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
STARTS = "dragqueue bench|dragqueue eval|python -m benchmarks"
IN_A_BLOCK = re.compile(rf"^(?:\$ )?((?:{STARTS})\b.*)$", re.MULTILINE)
IN_A_SENTENCE = re.compile(rf"(?<!`)`((?:{STARTS})\b[^`]*)`(?!`)")
# what a parser raises: typer's usage errors, argparse's exit, and the two that an unknown command or module leads to
WRONG = (typer.BadParameter.__mro__[1], SystemExit, KeyError, ModuleNotFoundError)


@dataclass(frozen=True)
class CommandLine:
    where: str
    text: str
    complete: bool  # a line to be typed; in a sentence required options may be missing


def command_lines() -> Iterator[CommandLine]:
    for path in DOCUMENTS:
        text = path.read_text()
        for pattern, complete in ((IN_A_BLOCK, True), (IN_A_SENTENCE, False)):
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield CommandLine(f"{path.name}:{line}", match[1], complete)
    for match in re.finditer(rf"\$\(BIN\)/((?:{STARTS})\b.*)", (REPOSITORY / "Makefile").read_text()):
        yield CommandLine("Makefile", match[1], True)


def parse(text: str, *, complete: bool = True) -> None:
    """Parse a command line without running it. Raises one of WRONG."""
    program, *words = shlex.split(text, comments=True)
    if program == "dragqueue":
        parse_dragqueue(words, complete)
    else:
        parse_module(words[1], words[2:], complete)


def parse_dragqueue(words: list[str], complete: bool) -> None:
    command, name = typer.main.get_command(app), "dragqueue"
    while words and hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    if hasattr(command, "commands"):  # a group alone
        return
    try:
        command.make_context(name, words).close()
    except typer.BadParameter as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise


def parse_module(module: str, words: list[str], complete: bool) -> None:
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:  # a package
        module = f"{module}.__main__"
    parser = importlib.import_module(module).make_parser()
    if words or complete:
        parser.parse_args(words)


@pytest.mark.parametrize("line", list(command_lines()), ids=lambda line: f"{line.where} {line.text[:60]}")
def test_every_command_line_of_the_documents_parses(line):
    parse(line.text, complete=line.complete)


def test_the_documents_have_command_lines_of_all_kinds():
    starts = {tuple(line.text.split()[:2]) for line in command_lines()}
    assert {("dragqueue", "bench"), ("dragqueue", "eval"), ("python", "-m")} <= starts


@pytest.mark.parametrize(
    "stale",
    [
        "dragqueue bench drag --sizes 256",
        "dragqueue bench speed",
        "dragqueue bench job --count many",
        "dragqueue eval landmarks",
        "dragqueue eval beauty --out runs/eval",
        "python -m benchmarks.agreement --number 100",
        "python -m benchmarks.nothing",
    ],
)
def test_a_stale_command_line_is_found(stale):
    with pytest.raises(WRONG):
        parse(stale)


def test_in_a_sentence_a_required_option_may_be_missing_but_none_may_be_wrong():
    parse("dragqueue eval landmarks", complete=False)
    with pytest.raises(WRONG, match="No such option"):
        parse("dragqueue eval landmarks --number 5", complete=False)


@pytest.fixture(scope="module")
def speeds():
    """Times as fast as the official step, and seconds of a step, by resolution, mask and type; of the committed measurement."""
    document = json.loads((REPOSITORY / "docs" / "performance" / "drag-speed.json").read_text())
    one = {(s["case"]["way"], s["case"]["resolution"], s["case"]["mask"], s["case"]["dtype"]): s for s in document["speeds"]}
    found = {}
    for (way, resolution, mask, dtype), speed in one.items():
        if way == "ours":
            official = one["official", resolution, "none" if mask == "none" else "paper", "float32"]
            found[resolution, mask, dtype] = official["median_s"] / speed["drag_s"], speed["drag_s"]
    return found


def table_rows(name: str, first_column: str) -> list[list[str]]:
    """The cells of the one table of a document whose first column has this title."""
    _, _, rest = (REPOSITORY / name).read_text().partition(f"\n| {first_column} |")
    table = rest.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in [f"{first_column} |{table[0]}", *table[2:]]]


def test_the_readmes_speed_table_is_the_committed_measurement(speeds):
    (_, *sizes), *rows = table_rows("README.md", "times as fast")
    assert len(rows) == 5
    for title, *cells in rows:
        mask = "none" if "no mask" in title else "early" if "early" in title else "paper"
        dtype = "bfloat16" if "bfloat16" in title else "float32"
        for size, cell in zip(sizes, cells, strict=True):
            times, seconds = speeds[int(size.split()[0]), mask, dtype]
            assert (title, size, cell) == (title, size, f"{times:.1f} ({1000 * seconds:.0f} ms)")


def test_the_speed_table_of_performance_is_the_committed_measurement(speeds):
    _, *rows = table_rows("docs/performance.md", "px")
    assert {(int(row[0]), row[1], row[2]) for row in rows} == set(speeds)
    for row in rows:
        times, seconds = speeds[int(row[0]), row[1], row[2]]
        assert (row[:3], row[4:6]) == (row[:3], [f"{seconds:.3f}", f"{times:.1f}"])
