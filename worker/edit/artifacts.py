"""What an edit leaves behind: frames while it runs; result, overlay, animation, trajectory and latent at its end."""

import json
import platform
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from engine.drag.run import DragStep
from engine.inversion.stored_tensors import encode_tensors
from engine.media.encoding import encode_animation, encode_image
from engine.media.frame_renderer import FrameFile, FrameRenderer, join_rows
from engine.media.overlay import draw_overlay
from engine.media.provenance import DigitalSourceType, embed, xmp_packet
from engine.media.renderer import RenderedImages
from jobs.models.manifest import ModelEntry
from jobs.spec.job_spec import JobSpec
from jobs.spec.model_points import model_points
from jobs.storage.artifacts import StoredObject
from worker.edit.inputs import EditStart

TUNED = "generator.safetensors"  # the artifact with the tensors in which a tuned generator is not the model's
VERSION = version("dragqueue")  # read once: that takes a millisecond
CREATOR_TOOL = f"Dragqueue {VERSION}"
GROUP_SIZE = 8  # frames are rendered in fixed groups, so that their bytes do not depend on when a group was full
MEDIA_TYPES = {
    ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4", ".json": "application/json",
    ".safetensors": "application/octet-stream",
}  # fmt: skip


@dataclass(frozen=True)
class PendingArtifact:
    """An artifact to be stored; the thread that stores it encodes it, beside the drag."""

    name: str  # such as frames/00012.webp
    encode: Callable[[], bytes]

    @property
    def media_type(self) -> str:
        """The type of the content, by the name's suffix."""
        return MEDIA_TYPES[Path(self.name).suffix]


class Sink(Protocol):
    """A place that takes artifacts: a store, or a folder."""

    def put(self, artifact: PendingArtifact) -> None:
        """Take an artifact; it may be stored later."""
        ...

    def wait_until_stored(self) -> Sequence[StoredObject]:
        """Wait until all artifacts are stored, and return what is known of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where an attempt's time went, in seconds."""

    load_s: float
    inversion_s: float = 0.0
    drag_s: float


@dataclass(frozen=True, kw_only=True)
class WrittenSteps:
    """The steps of a drag that a writer has noted, and the frames it has made of them."""

    trajectory: list[dict[str, Any]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)  # iterations
    rows: Tensor | None = None  # [N, rows, D], the trainable rows of w+ of each frame


class ArtifactWriter:
    """Turns the start, the steps and the result of one edit into artifacts, and hands them to a sink."""

    def __init__(
        self, spec: JobSpec, start: EditStart, movable: np.ndarray | None, sink: Sink, *, kept: Collection[str] = (),
        group_size: int = GROUP_SIZE, render_lock: AbstractContextManager[None] | None = None,
    ) -> None:  # fmt: skip
        """Write nothing yet: entering the context writes the first picture.

        Args:
            kept: names of artifacts that an earlier attempt has stored.
            group_size: frames rendered at a time; other numbers than GROUP_SIZE make other bytes.
            render_lock: held while rendering.
        """
        self.spec = spec
        self.start = start
        self.source_type = source_type_of(start)
        self.movable = movable
        self.sink = sink
        self.kept = frozenset(kept)
        self.group_size = group_size
        self.render_lock = render_lock or nullcontext()
        self.put_names: list[str] = []  # of artifacts that the sink has, or will have before the next one it gets
        self.targets = model_points(spec, start.crop_transform)[1]  # [K, 2]
        self.trajectory: list[dict[str, Any]] = []
        self.frames: list[tuple[int, Tensor]] = []  # iteration and trainable rows [1, rows, D] of each
        self.pending_frames: list[int] = []  # iterations of the last frames, which are not rendered yet
        self.frame_file = FrameFile(start.generator.config.resolution)
        self.renderer = FrameRenderer(start.generator, start.w, spec.drag.trainable_layers, group_size)

    def __enter__(self) -> Self:
        """Write the picture that the drag starts from."""
        pixels = self.render(self.start.w)
        if self.start.curve and self.start.photo is not None:
            crop = self.start.photo.crop()  # the client's own picture, which no algorithm made
            self.put(PendingArtifact("source.png", lambda: encode_image(crop, ".png")))
            self.put_image("inverted.png", pixels)
        else:
            self.put_image("source.png", pixels)
        if self.start.tuned_tensors:
            self.put_tensors(TUNED, self.start.tuned_tensors)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.frame_file.close()

    def add_step(self, step: DragStep) -> None:
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
            self.add_frame(step.iteration, self.renderer.take_rows(step.w))

    def add_frame(self, iteration: int, rows: Tensor) -> None:
        """Note a frame, and render a group as soon as it is full."""
        self.frames.append((iteration, rows))
        self.pending_frames.append(iteration)
        if len(self.pending_frames) == self.group_size:
            self.render_pending_frames()

    def steps_before(self, iteration: int) -> WrittenSteps:
        """Return what was noted before an iteration."""
        frames = [(number, rows) for number, rows in self.frames if number < iteration]
        rows = join_rows([rows for _, rows in frames])
        return WrittenSteps(trajectory=self.trajectory[:iteration], frames=[number for number, _ in frames], rows=rows)

    def restore(self, written: WrittenSteps, on_frame: Callable[[], object] = lambda: None) -> None:
        """Go on from what an earlier attempt has written.

        Args:
            on_frame: called after each frame; some of them take long.
        """
        self.trajectory += written.trajectory
        if not written.frames:
            return
        assert written.rows is not None
        for iteration, rows in zip(written.frames, self.renderer.split_rows(written.rows, len(written.frames)), strict=True):
            self.add_frame(iteration, rows)
            on_frame()

    def render_pending_frames(self) -> None:
        """Render a group of frames and put them, except what nothing needs: frames that are kept already, without animation."""
        names = [f"frames/{iteration:05d}.{self.spec.output.frame_format}" for iteration in self.pending_frames]
        if not names or (self.kept.issuperset(names) and not self.spec.output.animation):
            self.put_names += names
            self.pending_frames.clear()
            return
        with self.render_lock:
            rendered = self.renderer.render_group([rows for _, rows in self.frames[-len(names) :]])
        self.frame_file.append(rendered, len(names))
        for k, name in enumerate(names):
            self.put_rendered(name, partial(encode_rendered, rendered, k, Path(name).suffix))
        self.pending_frames.clear()

    def render(self, w: Tensor) -> np.ndarray:
        """Return the picture of w+ [1, L, D], uint8 [R, R, 3]."""
        with self.render_lock:
            rendered = self.renderer.render(w)
        pixels: np.ndarray = rendered.pixels()[0]
        return pixels

    def keep_frames(self) -> None:
        """Store the frames there are; nothing else of this edit will be stored."""
        self.render_pending_frames()
        self.sink.wait_until_stored()

    def finish(self, result: DragStep | None, model: ModelEntry, timings: Timings) -> None:
        """Write everything that needs the end of the edit.

        Args:
            result: None when there was nothing to drag.
        """
        self.render_pending_frames()
        w = self.start.w if result is None else result.w
        pixels = self.render(w)
        self.put_image("result.png", pixels)
        self.put_tensors("latent.safetensors", {"w": w})
        if self.start.photo is not None:
            self.put_image("photo.png", self.start.photo.with_crop(pixels))
        if result is not None or self.start.curve:
            self.put(PendingArtifact("trajectory.json", lambda: to_json(self.trajectory_document(result))))
        if result is not None:
            self.put_drag_pictures(result, pixels)
        manifest = self.manifest(model, timings)
        self.put(PendingArtifact("manifest.json", lambda: to_json(manifest)))
        self.sink.wait_until_stored()

    def put_drag_pictures(self, result: DragStep, pixels: np.ndarray) -> None:
        if self.spec.output.overlay:
            self.put_image("overlay.png", self.overlay(pixels, result.iteration))
        for kind in self.spec.output.animation if self.spec.output.frames_every else ():
            self.put_rendered(f"animation.{kind}", partial(self.animation, kind, pixels))

    def manifest(self, model: ModelEntry, timings: Timings) -> dict[str, Any]:
        """Return everything needed to repeat the run, and to check what it left."""
        stored = self.sink.wait_until_stored()
        return {
            "spec": self.spec.model_dump(mode="json"),
            "checkpoint": {"model": model.name, "file": model.file, "sha256": model.sha256},
            "engine": {"dragqueue": VERSION, "torch": torch.__version__, "python": platform.python_version()},
            "digital_source_type": self.source_type,
            "device": str(self.start.generator.device),
            "threads": torch.get_num_threads(),
            "timings": asdict(timings),
            "artifacts": {artifact.name: {"sha256": artifact.sha256, "size_bytes": artifact.size_bytes} for artifact in stored},
        }

    def trajectory_document(self, result: DragStep | None) -> dict[str, Any]:
        """Return the course of inversion and drag; points in pixels of the model's image."""
        return {
            "targets": self.targets.tolist(),
            "stop_reason": None if result is None else result.stop_reason,
            "result_iteration": None if result is None else result.iteration,
            "steps": self.trajectory,
            "inversion": [asdict(point) for point in self.start.curve],
        }

    def overlay(self, pixels: np.ndarray, result_iteration: int) -> np.ndarray:
        """Return the result with points, paths and mask drawn over it."""
        paths = [step["handles"] for step in self.trajectory[: result_iteration + 1]]
        return draw_overlay(pixels, paths, [(x, y) for x, y in self.targets.tolist()], self.movable)

    def animation(self, kind: str, last: np.ndarray) -> bytes:
        """Return all frames and the result as an animation."""
        return encode_animation(self.frame_file.read_with(last), f".{kind}")

    def put_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.put(PendingArtifact(name, lambda: encode_tensors(tensors)))

    def put_image(self, name: str, pixels: np.ndarray) -> None:
        self.put_rendered(name, lambda: encode_image(pixels, Path(name).suffix))

    def put_rendered(self, name: str, encode: Callable[[], bytes]) -> None:
        """Put a picture that the generator drew, or drew a part of: its file says so."""
        self.put(PendingArtifact(name, lambda: with_provenance(encode(), Path(name).suffix, self.source_type)))

    def put(self, artifact: PendingArtifact) -> None:
        """Hand an artifact to the sink, unless an earlier attempt has stored it."""
        self.put_names.append(artifact.name)
        if artifact.name not in self.kept:
            self.sink.put(artifact)


def source_type_of(start: EditStart) -> DigitalSourceType:
    """Return what kind of source an edit's pictures have; a tuned generator has seen a photo, even where the photo is gone."""
    of_photo = start.photo is not None or bool(start.tuned_tensors)
    return DigitalSourceType.EDITED if of_photo else DigitalSourceType.GENERATED


def with_provenance(data: bytes, suffix: str, source_type: DigitalSourceType) -> bytes:
    """Return an encoded picture or animation with the note in it how it came about."""
    return embed(xmp_packet(source_type, CREATOR_TOOL), data, suffix)


def encode_rendered(rendered: RenderedImages, number: int, suffix: str) -> bytes:
    """Return one rendered picture as a file."""
    return encode_image(rendered.pixels()[number], suffix)


def to_json(value: Any) -> bytes:
    """Return a value as an artifact's JSON."""
    return json.dumps(value, indent=1).encode()
