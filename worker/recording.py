"""What an edit leaves behind: frames while it runs; result, overlay, animation, trajectory and latent at its end."""

import io
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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

from engine.animation import write_animation
from engine.drag import DragStep
from engine.generator import to_pixels
from engine.overlay import draw_overlay
from jobs.checkpoints import ModelEntry
from jobs.repository import StoredObject
from jobs.spec import JobSpec
from worker.edit import model_points
from worker.source import Beginning

GROUP = 8  # frames are rendered in fixed groups, so that their bytes do not depend on when a group was full
MEDIA_TYPES = {
    ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4", ".json": "application/json",
    ".safetensors": "application/octet-stream",
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """An artifact to be stored; encoded by whoever stores it, beside the drag."""

    name: str  # such as frames/00012.webp
    encode: Callable[[], bytes]

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[Path(self.name).suffix]


class Sink(Protocol):
    """Takes artifacts: a store, or a folder."""

    def put(self, product: Product) -> None: ...

    def drain(self) -> Sequence[StoredObject]:
        """Wait until all are safe, and say what they are."""
        ...


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where an attempt's time went, in seconds."""

    load_s: float
    inversion_s: float = 0.0
    drag_s: float


class Recording:
    """Watches one edit and hands its artifacts to a sink."""

    def __init__(self, spec: JobSpec, beginning: Beginning, movable: np.ndarray | None, sink: Sink) -> None:
        self.spec = spec
        self.beginning = beginning
        self.generator = beginning.generator
        self.movable = movable
        self.sink = sink
        self.start = beginning.w
        self.targets = model_points(spec, beginning.framing)[1]  # [K, 2]
        self.trajectory: list[dict[str, Any]] = []
        self.waiting: list[DragStep] = []  # frames not rendered yet
        self.frames = FrameFile(self.generator.config.resolution)

    def __enter__(self) -> Self:
        begun = self.generator.render(self.start)
        if self.beginning.curve and self.beginning.photo is not None:
            self.put_image("source.png", self.beginning.photo.crop())
            self.put_image("inverted.png", begun)
        else:
            self.put_image("source.png", begun)
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
            self.waiting.append(step)
        if len(self.waiting) == GROUP:
            self.render_waiting()

    def render_waiting(self) -> None:
        if not self.waiting:
            return
        padded = self.waiting + [self.waiting[-1]] * (GROUP - len(self.waiting))
        with torch.no_grad():
            images = to_pixels(self.generator.images(torch.cat([step.w for step in padded])))
        for step, pixels in zip(self.waiting, images, strict=False):
            self.frames.append(pixels)
            self.put_image(f"frames/{step.iteration:05d}.{self.spec.output.frame_format}", pixels)
        self.waiting.clear()

    def keep_frames(self) -> None:
        """Store the frames there are; nothing else of this edit will be."""
        self.render_waiting()
        self.sink.drain()

    def finish(self, result: DragStep | None, model: ModelEntry, timings: Timings) -> None:
        """Everything that needs the end; result is None when there was nothing to drag."""
        self.render_waiting()
        w = self.start if result is None else result.w
        pixels = self.generator.render(w)
        self.put_image("result.png", pixels)
        self.put_tensors("latent.safetensors", {"w": w})
        if self.beginning.changes:
            self.put_tensors("generator.safetensors", self.beginning.changes)
        if self.beginning.photo is not None:
            self.put_image("photo.png", self.beginning.photo.with_crop(pixels))
        if result is not None or self.beginning.curve:
            self.sink.put(Product("trajectory.json", lambda: to_json(self.story(result))))
        if result is not None:
            self.finish_drag(result, pixels)
        manifest = self.manifest(model, timings)
        self.sink.put(Product("manifest.json", lambda: to_json(manifest)))
        self.sink.drain()

    def finish_drag(self, result: DragStep, pixels: np.ndarray) -> None:
        if self.spec.output.overlay:
            self.put_image("overlay.png", self.overlay(pixels, result.iteration))
        for kind in self.spec.output.animation if self.spec.output.frames_every else ():
            self.sink.put(Product(f"animation.{kind}", partial(self.animation, kind, pixels)))

    def manifest(self, model: ModelEntry, timings: Timings) -> dict[str, Any]:
        """Everything needed to repeat the run, and to check what it left."""
        stored = self.sink.drain()
        return {
            "spec": self.spec.model_dump(mode="json"),
            "checkpoint": {"model": model.name, "file": model.file, "sha256": model.sha256},
            "engine": {"dragqueue": version("dragqueue"), "torch": torch.__version__, "python": platform.python_version()},
            "device": str(self.generator.device),
            "threads": torch.get_num_threads(),
            "timings": asdict(timings),
            "artifacts": {artifact.name: {"sha256": artifact.sha256, "size_bytes": artifact.size_bytes} for artifact in stored},
        }

    def story(self, result: DragStep | None) -> dict[str, Any]:
        """Of inversion and drag; points in pixels of the model's image."""
        curve = [
            {"phase": step.phase, "iteration": step.iteration, "loss": step.loss, "psnr_db": round(step.psnr_db, 3)}
            for step in self.beginning.curve
        ]
        return {
            "targets": self.targets.tolist(),
            "stop_reason": None if result is None else result.stop_reason,
            "result_iteration": None if result is None else result.iteration,
            "steps": self.trajectory,
            "inversion": curve,
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
        self.sink.put(Product(name, lambda: save({key: value.cpu().contiguous() for key, value in tensors.items()})))

    def put_image(self, name: str, pixels: np.ndarray) -> None:
        self.sink.put(Product(name, lambda: encode_image(pixels, Path(name).suffix)))


class FrameFile:
    """Rendered frames in a temporary file: an animation needs them all, memory should not."""

    def __init__(self, resolution: int) -> None:
        self.shape = (resolution, resolution, 3)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the recording

    def append(self, pixels: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(pixels).tobytes())

    def then(self, last: np.ndarray) -> Iterator[np.ndarray]:
        """All frames from the first, and one more."""
        self.file.seek(0)
        size = int(np.prod(self.shape))
        while data := self.file.read(size):
            yield np.frombuffer(data, dtype=np.uint8).reshape(self.shape)
        yield last

    def close(self) -> None:
        self.file.close()


def encode_image(pixels: np.ndarray, suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == ".webp":
        Image.fromarray(pixels).save(out, format="WEBP", quality=90, method=2)
    else:
        Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
