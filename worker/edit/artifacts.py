"""What an edit leaves behind: frames while it runs; result, overlay, animation, trajectory and latent at its end."""

import io
import json
import platform
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from engine.drag.run import DragStep
from engine.media.animation import write_animation
from engine.media.overlay import draw_overlay
from engine.media.provenance import DigitalSourceType, embed, xmp_packet
from engine.media.renderer import RenderedImages, Renderer
from jobs.models.manifest import ModelEntry
from jobs.spec.job_spec import JobSpec
from jobs.storage.artifacts import StoredObject
from worker.edit.drag import model_points
from worker.edit.inputs import EditStart

TUNED = "generator.safetensors"  # the artifact with the tensors in which a tuned generator is not the model's
VERSION = version("dragqueue")  # read once: that takes a millisecond
CREATOR_TOOL = f"Dragqueue {VERSION}"
GROUP = 8  # frames are rendered in fixed groups, so that their bytes do not depend on when a group was full
MEDIA_TYPES = {
    ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4", ".json": "application/json",
    ".safetensors": "application/octet-stream",
}  # fmt: skip


@dataclass(frozen=True)
class PendingArtifact:
    """An artifact to be stored; encoded by whoever stores it, beside the drag."""

    name: str  # such as frames/00012.webp
    encode: Callable[[], bytes]

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[Path(self.name).suffix]


class Sink(Protocol):
    """Takes artifacts: a store, or a folder."""

    def put(self, product: PendingArtifact) -> None: ...

    def drain(self) -> Sequence[StoredObject]:
        """Wait until all are safe, and say what they are."""
        ...


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where an attempt's time went, in seconds."""

    load_s: float
    inversion_s: float = 0.0
    drag_s: float


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a recording has seen so far."""

    trajectory: list[dict[str, Any]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)  # iterations
    rows: Tensor | None = None  # [N, rows, D], the trainable rows of w+ of each frame


class ArtifactWriter:
    """Watches one edit and hands its artifacts to a sink."""

    def __init__(
        self, spec: JobSpec, beginning: EditStart, movable: np.ndarray | None, sink: Sink, *, kept: Collection[str] = (),
        group: int = GROUP, turn: AbstractContextManager[None] | None = None,
    ) -> None:  # fmt: skip
        """Args:
        kept: artifacts that are stored already, by an attempt that this one goes on from.
        group: frames rendered at a time; other numbers than GROUP make other bytes.
        turn: held while rendering.
        """
        self.spec = spec
        self.beginning = beginning
        self.generator = beginning.generator
        self.painter = Renderer(self.generator)
        self.source_type = source_type_of(beginning)
        self.movable = movable
        self.sink = sink
        self.kept = frozenset(kept)
        self.group = group
        self.turn = turn or nullcontext()
        self.given: list[str] = []  # artifacts that the sink has, or will have before the next it gets
        self.start = beginning.w
        self.targets = model_points(spec, beginning.framing)[1]  # [K, 2]
        self.trajectory: list[dict[str, Any]] = []
        self.framed: list[tuple[int, Tensor]] = []  # iteration and trainable rows [1, rows, D] of each frame
        self.waiting: list[int] = []  # iterations of frames not rendered yet
        self.frames = FrameFile(self.generator.config.resolution)

    def __enter__(self) -> Self:
        begun = self.render(self.start)
        if self.beginning.curve and self.beginning.photo is not None:
            crop = self.beginning.photo.crop()  # the client's own picture, which no algorithm made
            self.put(PendingArtifact("source.png", lambda: encode_image(crop, ".png")))
            self.put_image("inverted.png", begun)
        else:
            self.put_image("source.png", begun)
        if self.beginning.changes:
            self.put_tensors(TUNED, self.beginning.changes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.frames.close()

    def add(self, step: DragStep) -> None:
        """Note an iteration; every so many of them become a frame."""
        self.trajectory.append(
            {
                "iteration": step.iteration,
                "handles": step.handles.tolist(),
                "loss": step.loss,
                "distance_px": step.distance_px,
            }
        )
        every = self.spec.output.frames_every
        if every and step.iteration % every == 0:
            self.frame(step.iteration, step.w[:, : self.spec.drag.trainable_layers])

    def frame(self, iteration: int, rows: Tensor) -> None:
        self.framed.append((iteration, rows))
        self.waiting.append(iteration)
        if len(self.waiting) == self.group:
            self.render_waiting()

    def past(self, iteration: int) -> Past:
        """What was seen before an iteration."""
        framed = [(number, rows) for number, rows in self.framed if number < iteration]
        rows = torch.cat([rows for _, rows in framed]) if framed else None
        return Past(trajectory=self.trajectory[:iteration], frames=[number for number, _ in framed], rows=rows)

    def take_up(self, past: Past, seen: Callable[[], object] = lambda: None) -> None:
        """Go on from what an earlier attempt has seen; `seen` is called after each frame, some of which take long."""
        self.trajectory += past.trajectory
        for k, iteration in enumerate(past.frames):
            assert past.rows is not None
            self.frame(iteration, past.rows[k : k + 1].to(self.start))
            seen()

    def render_waiting(self) -> None:
        names = [f"frames/{iteration:05d}.{self.spec.output.frame_format}" for iteration in self.waiting]
        if not names or (self.kept.issuperset(names) and not self.spec.output.animation):
            self.given += names
            self.waiting.clear()
            return
        latents = [self.latent(rows) for _, rows in self.framed[-len(names) :]]
        padded = latents + [latents[-1]] * (self.group - len(latents))
        with self.turn:
            drawing = self.painter.render(torch.cat(padded))
        self.frames.append(drawing, len(names))
        for k, name in enumerate(names):
            self.put_drawn(name, partial(encode_drawn, drawing, k, Path(name).suffix))
        self.waiting.clear()

    def render(self, w: Tensor) -> np.ndarray:
        """The picture of w+ [1, L, D], uint8 [R, R, 3]."""
        with self.turn:
            drawing = self.painter.render(w)
        pixels: np.ndarray = drawing.pixels()[0]
        return pixels

    def latent(self, rows: Tensor) -> Tensor:
        """w+ [1, L, D] with these trainable rows."""
        return torch.cat([rows, self.start[:, rows.shape[1] :]], dim=1)

    def keep_frames(self) -> None:
        """Store the frames there are; nothing else of this edit will be."""
        self.render_waiting()
        self.sink.drain()

    def finish(self, result: DragStep | None, model: ModelEntry, timings: Timings) -> None:
        """Everything that needs the end; result is None when there was nothing to drag."""
        self.render_waiting()
        w = self.start if result is None else result.w
        pixels = self.render(w)
        self.put_image("result.png", pixels)
        self.put_tensors("latent.safetensors", {"w": w})
        if self.beginning.photo is not None:
            self.put_image("photo.png", self.beginning.photo.with_crop(pixels))
        if result is not None or self.beginning.curve:
            self.put(PendingArtifact("trajectory.json", lambda: to_json(self.story(result))))
        if result is not None:
            self.finish_drag(result, pixels)
        manifest = self.manifest(model, timings)
        self.put(PendingArtifact("manifest.json", lambda: to_json(manifest)))
        self.sink.drain()

    def finish_drag(self, result: DragStep, pixels: np.ndarray) -> None:
        if self.spec.output.overlay:
            self.put_image("overlay.png", self.overlay(pixels, result.iteration))
        for kind in self.spec.output.animation if self.spec.output.frames_every else ():
            self.put_drawn(f"animation.{kind}", partial(self.animation, kind, pixels))

    def manifest(self, model: ModelEntry, timings: Timings) -> dict[str, Any]:
        """Everything needed to repeat the run, and to check what it left."""
        stored = self.sink.drain()
        return {
            "spec": self.spec.model_dump(mode="json"),
            "checkpoint": {"model": model.name, "file": model.file, "sha256": model.sha256},
            "engine": {"dragqueue": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            "digital_source_type": self.source_type,
            "device": str(self.generator.device),
            "threads": torch.get_num_threads(),
            "timings": asdict(timings),
            "artifacts": {artifact.name: {"sha256": artifact.sha256, "size_bytes": artifact.size_bytes} for artifact in stored},
        }

    def story(self, result: DragStep | None) -> dict[str, Any]:
        """Of inversion and drag; points in pixels of the model's image."""
        return {
            "targets": self.targets.tolist(),
            "stop_reason": None if result is None else result.stop_reason,
            "result_iteration": None if result is None else result.iteration,
            "steps": self.trajectory,
            "inversion": [asdict(point) for point in self.beginning.curve],
        }

    def overlay(self, pixels: np.ndarray, result_iteration: int) -> np.ndarray:
        ways = [step["handles"] for step in self.trajectory[: result_iteration + 1]]
        return draw_overlay(pixels, ways, [(x, y) for x, y in self.targets.tolist()], self.movable)

    def animation(self, kind: str, last: np.ndarray) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"animation.{kind}"
            write_animation(self.frames.then(last), path)
            return path.read_bytes()

    def put_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.put(PendingArtifact(name, lambda: save({key: value.cpu().contiguous() for key, value in tensors.items()})))

    def put_image(self, name: str, pixels: np.ndarray) -> None:
        self.put_drawn(name, lambda: encode_image(pixels, Path(name).suffix))

    def put_drawn(self, name: str, encode: Callable[[], bytes]) -> None:
        """What the generator drew, or drew a part of, says so."""
        self.put(PendingArtifact(name, lambda: marked(encode(), Path(name).suffix, self.source_type)))

    def put(self, product: PendingArtifact) -> None:
        self.given.append(product.name)
        if product.name not in self.kept:
            self.sink.put(product)


class FrameFile:
    """Rendered frames in a temporary file: an animation needs them all, memory should not."""

    def __init__(self, resolution: int) -> None:
        self.shape = (resolution, resolution, 3)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the recording
        self.coming: list[tuple[RenderedImages, int]] = []

    def append(self, drawing: RenderedImages, count: int) -> None:
        """Its first pictures; those before have arrived background_thread."""
        self.write()
        self.coming.append((drawing, count))

    def write(self) -> None:
        for drawing, count in self.coming:
            self.file.write(np.ascontiguousarray(drawing.pixels()[:count]).tobytes())
        self.coming.clear()

    def then(self, last: np.ndarray) -> Iterator[np.ndarray]:
        """All frames from the first, and one more."""
        self.write()
        self.file.seek(0)
        size = int(np.prod(self.shape))
        while data := self.file.read(size):
            yield np.frombuffer(data, dtype=np.uint8).reshape(self.shape)
        yield last

    def close(self) -> None:
        self.file.close()


def source_type_of(beginning: EditStart) -> DigitalSourceType:
    """Of what an edit draws; a tuned generator has seen a photo, even where the photo is gone."""
    of_photo = beginning.photo is not None or bool(beginning.changes)
    return DigitalSourceType.EDITED if of_photo else DigitalSourceType.GENERATED


def marked(data: bytes, suffix: str, source_type: DigitalSourceType) -> bytes:
    """The encoded picture or animation, which now says how it came about."""
    return embed(xmp_packet(source_type, CREATOR_TOOL), data, suffix)


def encode_drawn(drawing: RenderedImages, number: int, suffix: str) -> bytes:
    return encode_image(drawing.pixels()[number], suffix)


def encode_image(pixels: np.ndarray, suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == ".webp":
        Image.fromarray(pixels).save(out, format="WEBP", quality=90, method=2)
    else:
        Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
