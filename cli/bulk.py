"""`dragqueue bulk`: thousands of edits from a file into a folder, by way of batches. A second run does what is missing."""

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
from cli.edit_files import Edit, make_grid, parse_seeds, read_edits
from cli.edits import AsJson, parse_option
from cli.errors import CommandError
from engine.atomic_write import atomic_write

app = typer.Typer(help="Many edits at once.", no_args_is_help=True)
console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
MAX_BATCH_LINES = 5_000
POLL_S = 1.0
MAX_LISTINGS = 50  # of a running batch's results: each lists all of them
PARALLEL_DOWNLOADS = 4
STATE, DONE, ERRORS = "bulk.json", "done.jsonl", "errors.jsonl"


class SentBatch(BaseModel):
    """A batch that was sent, or was about to be sent when the command was killed."""

    key: str  # the idempotency key: a batch that is sent again is the same batch
    custom_ids: list[str]
    id: str | None = None  # once it is known
    over: bool = False  # every job has ended, and every result is downloaded

    def has_news(self, batch: Batch, known: int) -> bool:
        """Return whether to list the results again, when `known` of them are downloaded."""
        new = batch.counts.succeeded - known
        return batch.finished_at is not None or new >= max(1, batch.lines // MAX_LISTINGS)


class BulkState(BaseModel):
    """The content of bulk.json in the folder of the results."""

    batches: list[SentBatch] = []


class ResultFolder:
    """The folder of the results of one file of edits."""

    def __init__(self, path: Path) -> None:
        """Open the folder, or create it.

        Raises:
            CommandError: bulk.json is damaged.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self.state = BulkState.model_validate_json((path / STATE).read_text()) if (path / STATE).exists() else BulkState()
        except ValidationError as error:
            raise CommandError(f"{path / STATE} is damaged: {error}") from error
        text = (path / DONE).read_text() if (path / DONE).exists() else ""
        if text and not text.endswith("\n"):  # a kill has cut the last line off
            (path / DONE).write_text(text := text[: text.rfind("\n") + 1])
        lines = text.splitlines()
        self.done = {json.loads(line)["custom_id"] for line in lines}

    def save(self) -> None:
        """Write bulk.json."""
        with atomic_write(self.path / STATE) as part:
            part.write_text(self.state.model_dump_json())

    def mark_done(self, line: BatchLine) -> None:
        """Record that an edit's artifacts are all downloaded."""
        with (self.path / DONE).open("a") as file:
            file.write(json.dumps({"custom_id": line.custom_id, "job": str(line.job)}) + "\n")
        self.done.add(str(line.custom_id))

    def unsent(self, edits: list[Edit]) -> list[Edit]:
        """Return the edits that are neither done nor in a batch that runs."""
        running = {custom_id for sent in self.state.batches if not sent.over for custom_id in sent.custom_ids}
        return [edit for edit in edits if edit.custom_id not in self.done | running]


@dataclass(frozen=True)
class ArtifactFilter:
    """The artifacts to download."""

    names: frozenset[str]  # empty: all
    frames: bool

    def download(self, client: Client, line: BatchLine, folder: Path) -> BatchLine:
        """Download the artifacts of a line's job that are not in the folder yet."""
        job = str(line.job)
        for artifact in client.artifacts(job) if self.frames else client.get(job, artifacts=True).artifacts or []:
            wanted = not self.names or artifact.name in self.names or artifact.name.startswith("frames/")
            if wanted and not is_downloaded(folder, artifact):
                write_artifact(folder, artifact, client.fetch(artifact))
        return line


class BulkRun:
    """One run of `dragqueue bulk run`: submit what is missing, wait, download what succeeded."""

    def __init__(self, client: Client, edits: list[Edit], folder: ResultFolder, artifacts: ArtifactFilter) -> None:
        self.client = client
        self.edits = {edit.custom_id: edit for edit in edits}
        self.folder = folder
        self.artifacts = artifacts
        self.errors: list[BatchLine] = []
        self.uploaded: dict[Path, str] = {}  # sha256 of each photo
        self.tried: set[str] = set()  # edits of batches that have ended, which this run does not send again
        self.has_room = True  # whether the service takes more jobs, as far as known

    def run(self) -> None:
        """Run until every edit has ended.

        Raises:
            CommandError: the service has no room for more jobs, or the file does not fit what an earlier run has sent.
        """
        with Progress(*BAR, console=console) as bar:
            task = bar.add_task("submitting", total=len(self.edits), completed=self.count_done())
            while True:
                if self.has_room:
                    self.submit_missing()
                running = [sent for sent in self.folder.state.batches if sent.id is not None and not sent.over]
                if not running:
                    break
                self.show(bar, task, [batch for sent in running if (batch := self.poll(sent)) is not None])
                if not any(sent.over for sent in running):
                    time.sleep(POLL_S)
        if not self.has_room:
            raise CommandError("the service has no room for more of this tenant's jobs: run this again later")

    def submit_missing(self) -> None:
        """Send what is missing, as far as the service has room for it."""
        for sent in self.folder.state.batches:
            if sent.id is None and not self.send(sent):  # it may have arrived before, or not
                return
        missing = [edit for edit in self.folder.unsent(list(self.edits.values())) if edit.custom_id not in self.tried]
        lines = self.batch_size()
        for start in range(0, len(missing), lines):
            sent = SentBatch(key=str(uuid4()), custom_ids=[edit.custom_id for edit in missing[start : start + lines]])
            self.folder.state.batches.append(sent)
            self.folder.save()  # before it goes
            if not self.send(sent):
                return

    def batch_size(self) -> int:
        """Return how many lines a batch has: half of the quota, so that one batch queues while another runs."""
        max_queued = self.client.usage().max_queued
        return MAX_BATCH_LINES if max_queued is None else max(1, min(MAX_BATCH_LINES, max_queued // 2))

    def send(self, sent: SentBatch) -> bool:
        """Send a batch; return False if the service has no room for it now.

        Raises:
            CommandError: the file does not have the edits that an earlier run was sending.
        """
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
            self.has_room = False
            return False
        self.folder.save()
        return True

    def line_of(self, edit: Edit) -> dict[str, Any]:
        """Return an edit as a line of a batch, its photo uploaded."""
        job = edit.job
        if edit.image is not None:
            if edit.image not in self.uploaded:
                self.uploaded[edit.image] = self.client.upload(edit.image.read_bytes()).sha256
            job = job | {"source": job.get("source", {}) | {"upload": self.uploaded[edit.image]}}
        return {"custom_id": edit.custom_id, "job": job}

    def poll(self, sent: SentBatch) -> Batch | None:
        """Read a batch and download what has succeeded since; return None if the service does not know it any more."""
        try:
            batch = self.client.batch(str(sent.id))
        except RequestRefused as error:
            if error.code != "batch_not_found":
                raise
            self.close(sent)
            return None
        known = sum(custom_id in self.folder.done for custom_id in sent.custom_ids)
        if sent.has_news(batch, known):
            self.download([line for line in self.client.batch_lines(batch.id) if line.custom_id not in self.folder.done])
        if batch.finished_at is not None:
            self.errors += self.client.batch_lines(batch.id, "errors")
            self.tried |= set(sent.custom_ids)
            self.close(sent)
        return batch

    def close(self, sent: SentBatch) -> None:
        """Record that a batch is over."""
        sent.over, self.has_room = True, True
        self.folder.save()

    def download(self, lines: list[BatchLine]) -> None:
        """Download the artifacts of lines, several at a time, each into a folder named by its edit."""

        def download(line: BatchLine) -> BatchLine:
            return self.artifacts.download(self.client, line, self.folder.path / str(line.custom_id))

        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for line in pool.map(download, lines):
                self.folder.mark_done(line)

    def count_done(self) -> int:
        """Return how many edits of the file are done."""
        return len(self.folder.done & self.edits.keys())

    def show(self, bar: Progress, task: TaskID, batches: list[Batch]) -> None:
        """Show how many jobs are in each state."""
        counts = [batch.counts.model_dump() for batch in batches]
        states = {state: sum(count[state] for count in counts) for state in (counts[0] if counts else ())}
        description = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        bar.update(task, completed=self.count_done(), description=description)


@app.command()
def run(
    edits: Annotated[Path, typer.Argument(help="edits.jsonl or edits.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier run goes on.")],
    frames: Annotated[bool, typer.Option(help="Fetch frames too.")] = False,
    only: Annotated[str, typer.Option(help="Fetch only these artifacts, such as result.png,latent.safetensors.")] = "",
    url: Url = URL, key: Key = KEY, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run all edits of a file and download their results; exit code 0 when every edit has succeeded."""
    wanted, folder = read_edits(edits), ResultFolder(out)
    names = frozenset(name.strip() for name in only.split(",") if name.strip())
    with connect(url, key) as client:
        bulk = BulkRun(client, wanted, folder, ArtifactFilter(names, frames))
        bulk.run()
    (out / ERRORS).write_text("".join(error.model_dump_json() + "\n" for error in bulk.errors))
    done = bulk.count_done()
    summary = {"edits": len(wanted), "succeeded": done, "out": str(out)}
    sentence = f"{done} of {len(wanted)} edits have succeeded: {out}"
    sys.stdout.write((json.dumps(summary) if as_json else sentence) + "\n")
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
    lines = [json.dumps(line) for line in make_grid(model, parse_seeds(seeds), drag, template)]
    out.write_text("\n".join(lines) + "\n")
    console.print(f"{len(lines)} edits in {out}", highlight=False)
