"""Files of many edits: JSONL or CSV to read, JSONL to write.

A line of JSONL is {"custom_id": ..., "job": {...}}, with "image": PATH for a photo to edit. A row of CSV is an edit, with
the columns custom_id, image, points (X,Y:X,Y; X,Y:X,Y) and any field of a job by its path, such as model or source.seed.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.edits import parse_pair
from cli.errors import CommandError

UNSAFE = set('/\\:*?"<>|\0')  # in the name of a folder
MAX_SEEDS = 4096
MAX_NAME = 200  # characters


@dataclass(frozen=True)
class Edit:
    """One edit of a file."""

    custom_id: str  # also the name of its folder
    job: dict[str, Any]
    image: Path | None = None


def read_edits(path: Path) -> list[Edit]:
    """Return the edits of a file.

    Raises:
        CommandError: the file is not valid; the message names the line.
    """
    rows = read_csv(path) if path.suffix == ".csv" else read_jsonl(path)
    edits: dict[str, Edit] = {}
    for number, row in enumerate(rows, 1):
        edit = parse_edit(row, number, path)
        if edit.custom_id in edits:
            raise CommandError(f"{path}, edit {number}: the custom_id {edit.custom_id!r} is there twice")
        edits[edit.custom_id] = edit
    if not edits:
        raise CommandError(f"{path} has no edit")
    return list(edits.values())


def parse_edit(row: dict[str, Any], number: int, path: Path) -> Edit:
    """Return a row of the file as an edit."""
    custom_id = str(row.get("custom_id") or f"{number:05d}")
    if UNSAFE & set(custom_id) or custom_id.startswith(".") or len(custom_id) > MAX_NAME or not custom_id.isprintable():
        raise CommandError(f"{path}, edit {number}: the custom_id {custom_id!r} cannot be the name of a folder")
    if not isinstance(row.get("job"), dict) or not row.keys() <= {"custom_id", "job", "image"}:
        raise CommandError(f"{path}, edit {number}: must have job and, if you like, custom_id and image")
    if not isinstance(row.get("image") or "", str):
        raise CommandError(f"{path}, edit {number}: image must be a path")
    image = path.parent / row["image"] if row.get("image") else None
    if image is not None and not image.is_file():
        raise CommandError(f"{path}, edit {number}: there is no photo {image}")
    return Edit(custom_id, row["job"], image)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSONL file."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CommandError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise CommandError(f"{path}, line {number} must be an object with job")
            yield row


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file as JSONL would have them."""
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file, restkey="more", strict=True), 1):
            if "more" in row or None in row.values():
                raise CommandError(f"{path}, edit {number}: has not as many fields as the header")
            yield {"custom_id": row.pop("custom_id", ""), "image": row.pop("image", ""), "job": parse_job(row, number, path)}


def parse_job(row: dict[str, str], number: int, path: Path) -> dict[str, Any]:
    """Return the columns of a CSV row as a job."""
    job: dict[str, Any] = {}
    for column, text in row.items():
        if text == "":
            continue
        *outer, last = column.strip().split(".")
        parent = job
        for name in outer:
            parent = parent.setdefault(name, {})
            if not isinstance(parent, dict):
                raise CommandError(f"{path}, edit {number}: there are both {name} and {column}")
        try:
            parent[last] = [parse_pair(pair.strip()) for pair in text.split(";")] if column == "points" else parse_value(text)
        except CommandError as error:
            raise CommandError(f"{path}, edit {number}, points: {error}") from error
    return job


def parse_value(text: str) -> Any:
    """Return the text as JSON if it is JSON, such as a number or true; else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_grid(model: str, seeds: list[int], drags: list[str], template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a line for each seed and drag; a drag is points as in CSV."""
    for number, drag in enumerate(drags):
        points = [parse_pair(pair.strip()) for pair in drag.split(";")]
        for seed in seeds:
            job = template | {"model": model, "source": {"seed": seed}, "points": points}
            yield {"custom_id": f"seed{seed:05d}-drag{number:02d}", "job": job}


def parse_seeds(text: str) -> list[int]:
    """Return the numbers of a text such as 1,5,9-12."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise CommandError(f"--seeds must look like 0-15 or 1,5,9-12, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < 2**32 or len(seeds) + last - first >= MAX_SEEDS:
            raise CommandError(f"--seeds must be at most {MAX_SEEDS} numbers, rising, from 0 to 4294967295, got {text!r}")
        seeds += range(first, last + 1)
    return seeds
