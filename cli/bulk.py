"""`dragqueue bulk`: thousands of edits from a file into a folder, on top of batches.

Run it again and only what is missing runs.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from dragqueue_client import Batch, Client, RequestRefused
from dragqueue_client.artifact_files import is_downloaded, write_artifact
from dragqueue_client.models import BatchLine
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli.connection import KEY, URL, Key, Url, connect
from cli.edit_files import Edit, grid, parse_seeds, read_edits
from cli.edits import AsJson, parse_option
from cli.errors import CommandError
from engine.atomic_write import atomic_write

app = typer.Typer(help="Many edits at once.", no_args_is_help=True)
console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
LINES = 5_000  # of a batch
POLL_S = 1.0
LOOKS = 50  # at a batch's results while it runs, at most: each lists all of them
DOWNLOADS = 4  # at once
STORY, DONE, ERRORS = "bulk.json", "done.jsonl", "errors.jsonl"


class Sent(BaseModel):
    """A batch that was sent, or was about to be when the command was killed."""

    key: str  # idempotency: sent again, it is the same batch
    custom_ids: list[str]
    id: str | None = None  # once it is known
    over: bool = False  # every job has ended, and what succeeded is here

    def looks(self, batch: Batch, known: int) -> bool:
        """Whether it is time to look at the results again."""
        new = batch.counts.succeeded - known
        return batch.finished_at is not None or new >= max(1, batch.lines // LOOKS)


class Story(BaseModel):
    """What DIR/bulk.json remembers."""

    batches: list[Sent] = []


class Folder:
    """The results of one file of edits."""

    def __init__(self, path: Path) -> None:
        """Raises CommandError."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self.story = Story.model_validate_json((path / STORY).read_text()) if (path / STORY).exists() else Story()
        except ValidationError as error:
            raise CommandError(f"{path / STORY} is damaged: {error}") from error
        text = (path / DONE).read_text() if (path / DONE).exists() else ""
        if text and not text.endswith("\n"):  # a kill has cut the last line off
            (path / DONE).write_text(text := text[: text.rfind("\n") + 1])
        lines = text.splitlines()
        self.done = {json.loads(line)["custom_id"] for line in lines}

    def save(self) -> None:
        with atomic_write(self.path / STORY) as part:
            part.write_text(self.story.model_dump_json())

    def note(self, line: BatchLine) -> None:
        """An edit's artifacts are all here."""
        with (self.path / DONE).open("a") as file:
            file.write(json.dumps({"custom_id": line.custom_id, "job": str(line.job)}) + "\n")
        self.done.add(str(line.custom_id))

    def missing(self, edits: list[Edit]) -> list[Edit]:
        """Neither done nor on their way."""
        on_their_way = {custom_id for sent in self.story.batches if not sent.over for custom_id in sent.custom_ids}
        return [edit for edit in edits if edit.custom_id not in self.done | on_their_way]


@dataclass(frozen=True)
class Choice:
    """Which artifacts to fetch."""

    names: frozenset[str]  # empty: all
    frames: bool

    def fetch(self, client: Client, line: BatchLine, folder: Path) -> BatchLine:
        """Into a folder named by the edit."""
        job = str(line.job)
        for artifact in client.artifacts(job) if self.frames else client.get(job, artifacts=True).artifacts or []:
            wanted = not self.names or artifact.name in self.names or artifact.name.startswith("frames/")
            if wanted and not is_downloaded(folder, artifact):
                write_artifact(folder, artifact, client.fetch(artifact))
        return line


class Run:
    """Submits what is missing, follows what runs, fetches what succeeded."""

    def __init__(self, client: Client, edits: list[Edit], folder: Folder, choice: Choice) -> None:
        self.client = client
        self.edits = {edit.custom_id: edit for edit in edits}
        self.folder = folder
        self.choice = choice
        self.errors: list[BatchLine] = []
        self.uploaded: dict[Path, str] = {}
        self.tried: set[str] = set()  # edits of batches that have ended: not again in this run
        self.room = True  # for more jobs, as far as we know

    def carry_through(self) -> None:
        with Progress(*BAR, console=console) as bar:
            task = bar.add_task("submitting", total=len(self.edits), completed=self.finished())
            while True:
                if self.room:
                    self.submit()
                running = [sent for sent in self.folder.story.batches if sent.id is not None and not sent.over]
                if not running:
                    break
                self.show(bar, task, [batch for sent in running if (batch := self.look(sent)) is not None])
                if not any(sent.over for sent in running):
                    time.sleep(POLL_S)
        if not self.room:
            raise CommandError("the service has no room for more of this tenant's jobs: run this again later")

    def submit(self) -> None:
        """What is missing, as far as there is room for it."""
        for sent in self.folder.story.batches:
            if sent.id is None and not self.send(sent):  # it may have arrived before, or not
                return
        missing = [edit for edit in self.folder.missing(list(self.edits.values())) if edit.custom_id not in self.tried]
        lines = self.lines_at_once()
        for start in range(0, len(missing), lines):
            sent = Sent(key=str(uuid4()), custom_ids=[edit.custom_id for edit in missing[start : start + lines]])
            self.folder.story.batches.append(sent)
            self.folder.save()  # before it goes
            if not self.send(sent):
                return

    def lines_at_once(self) -> int:
        """Half of what may be queued fits while the other half runs."""
        most = self.client.usage().max_queued
        return LINES if most is None else max(1, min(LINES, most // 2))

    def send(self, sent: Sent) -> bool:
        """False when the service has no room for it now. Raises CommandError."""
        gone = [custom_id for custom_id in sent.custom_ids if custom_id not in self.edits]
        if gone:
            raise CommandError(f"an earlier run was sending {gone[0]!r}, which the file has no more: put it back")
        lines = (self.line_of(self.edits[custom_id]) for custom_id in sent.custom_ids)
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        try:
            sent.id = str(self.client.submit_batch(body, idempotency_key=sent.key).id)
        except RequestRefused as error:
            if error.code == "key_reused":
                raise CommandError("the file's edits have changed since an earlier run was sending them") from error
            if error.code != "quota_exceeded":
                raise
            self.room = False
            return False
        self.folder.save()
        return True

    def line_of(self, edit: Edit) -> dict[str, Any]:
        job = edit.job
        if edit.image is not None:
            if edit.image not in self.uploaded:
                self.uploaded[edit.image] = self.client.upload(edit.image.read_bytes()).sha256
            job = job | {"source": job.get("source", {}) | {"upload": self.uploaded[edit.image]}}
        return {"custom_id": edit.custom_id, "job": job}

    def look(self, sent: Sent) -> Batch | None:
        """How a batch stands; fetches what has succeeded since. None when the service has forgotten it."""
        try:
            batch = self.client.batch(str(sent.id))
        except RequestRefused as error:
            if error.code != "batch_not_found":
                raise
            self.end(sent)
            return None
        known = sum(custom_id in self.folder.done for custom_id in sent.custom_ids)
        if sent.looks(batch, known):
            self.fetch([line for line in self.client.batch_lines(batch.id) if line.custom_id not in self.folder.done])
        if batch.finished_at is not None:
            self.errors += self.client.batch_lines(batch.id, "errors")
            self.tried |= set(sent.custom_ids)
            self.end(sent)
        return batch

    def end(self, sent: Sent) -> None:
        sent.over, self.room = True, True
        self.folder.save()

    def fetch(self, lines: list[BatchLine]) -> None:
        def fetch(line: BatchLine) -> BatchLine:
            return self.choice.fetch(self.client, line, self.folder.path / str(line.custom_id))

        with ThreadPoolExecutor(DOWNLOADS) as pool:
            for line in pool.map(fetch, lines):
                self.folder.note(line)

    def finished(self) -> int:
        return len(self.folder.done & self.edits.keys())

    def show(self, bar: Progress, task: TaskID, batches: list[Batch]) -> None:
        counts = [batch.counts.model_dump() for batch in batches]
        states = {state: sum(count[state] for count in counts) for state in (counts[0] if counts else ())}
        told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        bar.update(task, completed=self.finished(), description=told)


@app.command()
def run(
    edits: Annotated[Path, typer.Argument(help="edits.jsonl or edits.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier run goes on.")],
    frames: Annotated[bool, typer.Option(help="Fetch frames too.")] = False,
    only: Annotated[str, typer.Option(help="Fetch only these artifacts, such as result.png,latent.safetensors.")] = "",
    url: Url = URL, key: Key = KEY, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run all edits of a file and download their results; exit code 0 when every edit has succeeded."""
    wanted, folder = read_edits(edits), Folder(out)
    names = frozenset(name.strip() for name in only.split(",") if name.strip())
    with connect(url, key) as client:
        bulk = Run(client, wanted, folder, Choice(names, frames))
        bulk.carry_through()
    (out / ERRORS).write_text("".join(error.model_dump_json() + "\n" for error in bulk.errors))
    done = bulk.finished()
    summary = {"edits": len(wanted), "succeeded": done, "out": str(out)}
    told = f"{done} of {len(wanted)} edits have succeeded: {out}"
    sys.stdout.write((json.dumps(summary) if as_json else told) + "\n")
    if done < len(wanted):
        console.print(f"why the others did not: {out / ERRORS}", highlight=False)
        raise typer.Exit(1)


@app.command()
def make(
    seeds: Annotated[str, typer.Option(help="Such as 0-99 or 1,5,9-12.")],
    drag: Annotated[list[str], typer.Option(help="X,Y:X,Y; X,Y:X,Y ... in pixels, handle:target; repeat it for several.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("edits.jsonl"),
    model: Annotated[str, typer.Option()] = "demo-faces",
    option: Annotated[list[str], typer.Option(help="NAME=VALUE of the drag, such as max_iterations=100.")] = [],  # noqa: B006
) -> None:
    """Write a file with an edit for each seed and drag."""
    template = {"drag": dict(parse_option(text, "--option") for text in option)} if option else {}
    lines = [json.dumps(line) for line in grid(model, parse_seeds(seeds), drag, template)]
    out.write_text("\n".join(lines) + "\n")
    console.print(f"{len(lines)} edits in {out}", highlight=False)
