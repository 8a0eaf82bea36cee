"""What a client asks for, as posted in JSON and as stored with the job.

Points are (x, y) in pixels of the picture to edit (the photo's own, where there is one), pixel centers at integers. Radii
are pixels of a 512-pixel image.
A field left out takes the model's default from its manifest entry, else the preset's; `resolved` fills them in.
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from engine.defaults import default_feature_resolution
from engine.drag.options import preset_options
from jobs.models.manifest import ModelEntry

MAX_POINTS = 64
MAX_SHAPES = 64
MAX_METADATA_BYTES = 16 * 2**10
Coordinate = Annotated[float, Field(ge=-65536, le=65536)]
Point = tuple[Coordinate, Coordinate]
UploadId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
COLD_STEPS, WARM_STEPS, TUNING_STEPS = 300, 100, 150  # of an inversion, from the mean of w or an encoder's guess


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Box(Strict):
    """A square of the photo, in pixels from its upper left corner."""

    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate]  # left, top, right, bottom


class FivePoints(Strict):
    """Of a face; left and right as the viewer sees them."""

    left_eye: Point
    right_eye: Point
    nose: Point
    mouth_left: Point
    mouth_right: Point


class Landmarks(Strict):
    """The square that FFHQ would cut around a face."""

    landmarks: FivePoints


Crop = Literal["center"] | Box | Landmarks


class Source(Strict):
    """Which picture to edit: a seed, an uploaded photo or latent, or the result of another job. Exactly one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    class_index: int | None = Field(default=None, alias="class", ge=0)  # of a conditional model, with a seed
    truncation_psi: float | None = Field(default=None, ge=-2, le=2)  # with a seed
    upload: UploadId | None = None  # a photo, inverted first
    crop: Crop | None = None  # of the photo; default its center
    latent: UploadId | None = None  # w or w+
    job: UUID | None = None  # go on from its result

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        if sum(value is not None for value in (self.seed, self.upload, self.latent, self.job)) != 1:
            raise ValueError("give exactly one of seed, upload, latent, job")
        if self.seed is None and (self.class_index is not None or self.truncation_psi is not None):
            raise ValueError("class and truncation_psi go with a seed")
        if self.upload is None and self.crop is not None:
            raise ValueError("crop goes with a photo")
        return self


class Inversion(Strict):
    """How a photo becomes a latent; see engine.inversion.inversion.InversionOptions."""

    space: Literal["w", "w+"] | None = None
    steps: int | None = Field(default=None, ge=1, le=5000)  # of the projection
    tuning_steps: int | None = Field(default=None, ge=0, le=5000)
    perceptual: Literal["auto", "none", "discriminator", "lpips"] | None = None

    def resolved(self, model: ModelEntry) -> "Inversion":
        """Return the options with nothing left to defaults; an encoder's guess saves most of the projection's steps."""
        steps = WARM_STEPS if model.encoder is not None else COLD_STEPS
        defaults = {"space": "w", "steps": steps, "tuning_steps": TUNING_STEPS, "perceptual": "auto"}
        return Inversion.model_validate(defaults | self.model_dump(exclude_none=True))


class PointPair(Strict):
    """A handle point and the target point it should move to."""

    handle: Point
    target: Point


class Shape(Strict):
    """One region that may change: exactly one of box, circle, polygon."""

    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None  # left, top, right, bottom; inclusive
    circle: tuple[Coordinate, Coordinate, Annotated[float, Field(gt=0, le=65536)]] | None = None  # x, y, radius
    polygon: list[Point] | None = Field(default=None, min_length=3, max_length=256)

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        if sum(value is not None for value in (self.box, self.circle, self.polygon)) != 1:
            raise ValueError("give exactly one of box, circle, polygon")
        return self


class Movable(Strict):
    """The movable mask, True where the picture may change: shapes whose union it is, or a PNG that was uploaded."""

    shapes: list[Shape] | None = Field(default=None, min_length=1, max_length=MAX_SHAPES)
    upload: UploadId | None = None

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        if (self.shapes is None) == (self.upload is None):
            raise ValueError("give exactly one of shapes, upload")
        return self


class Drag(Strict):
    """How to drag; see engine.drag.options.DragOptions.

    The preset `fast` without a mask takes steps that know no `learning_rate`, whoever gives it.
    """

    preset: Literal["default", "fast", "paper"] = "default"
    max_iterations: int | None = Field(default=None, ge=1, le=2000)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    mask_weight: float | None = Field(default=None, ge=0, le=10_000)
    mask_term: Literal["paper", "early"] | None = None
    motion_radius: float | None = Field(default=None, ge=1, le=32)
    tracking_radius: float | None = Field(default=None, ge=1, le=64)
    latent_space: Annotated[str, Field(pattern=r"^(w|w\+|pca:[1-9]\d{0,3})$")] | None = None
    trainable_layers: int | None = Field(default=None, ge=1, le=18)
    feature_resolution: int | None = Field(default=None, ge=4, le=1024)
    stop_distance: float | None = Field(default=None, ge=0.1, le=64)
    latent_weight: float | None = Field(default=None, ge=0, le=10_000)
    precision: Literal["float32", "bfloat16"] | None = None


class Output(Strict):
    """What to keep besides result, source, latent, trajectory and manifest."""

    frames_every: int = Field(default=1, ge=0, le=2000)  # iterations between two frames; 0 keeps none
    frame_format: Literal["webp", "png"] = "webp"
    animation: list[Literal["mp4", "webp", "gif"]] = Field(default=["mp4"], max_length=3)  # made of the frames kept
    overlay: bool = True

    @field_validator("animation")
    @classmethod
    def each_once(cls, animation: list[str]) -> list[str]:
        if len(set(animation)) < len(animation):
            raise ValueError("names a format twice")
        return animation


class JobSpec(Strict):
    """One requested edit. Without points the picture is only rendered, or inverted."""

    model: str = Field(min_length=1, max_length=100)
    source: Source
    points: list[PointPair] = Field(default=[], max_length=MAX_POINTS)
    movable: Movable | None = None
    drag: Drag = Drag()
    inversion: Inversion | None = None  # of a photo
    output: Output = Output()
    priority: int = Field(default=0, ge=-100, le=100)
    start_before: AwareDatetime | None = Field(
        default=None, ge=datetime(2000, 1, 1, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC)
    )
    run_timeout_s: float = Field(default=900, ge=1, le=86_400)
    retain_for_s: int = Field(default=604_800, ge=60, le=31_536_000)
    metadata: dict[str, JsonValue] = {}
    webhooks: list[UUID] = Field(default=[], max_length=8)  # told of this job, besides those that want every job

    @model_validator(mode="after")
    def inversion_needs_a_photo(self) -> Self:
        if self.inversion is not None and self.source.upload is None:
            raise ValueError("inversion goes with a photo")
        return self

    @field_validator("metadata")
    @classmethod
    def metadata_is_small(cls, metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
        size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"may take {MAX_METADATA_BYTES} bytes as JSON, takes {size}")
        if "\\u0000" in json.dumps(metadata):
            raise ValueError("may not contain the character NUL")
        return metadata

    def resolved(self, model: ModelEntry) -> "JobSpec":
        """Return the job with nothing left to defaults: the client's value, else the model's, else the preset's."""
        chosen = self.drag.model_dump(exclude_none=True)
        preset = asdict(preset_options(self.drag.preset, len(self.points), self.movable is not None))
        settable = {name: value for name, value in preset.items() if name in Drag.model_fields and value is not None}
        options = settable | model.defaults.drag(self.drag.preset) | chosen
        options.setdefault("feature_resolution", default_feature_resolution(model.resolution))
        if self.drag.mask_term is None and not model.has_early_mask(options["trainable_layers"], options["feature_resolution"]):
            options["mask_term"] = "paper"
        update: dict[str, object] = {"drag": Drag.model_validate(options)}
        if self.source.seed is not None and self.source.truncation_psi is None:
            update["source"] = self.source.model_copy(update={"truncation_psi": model.defaults.truncation_psi})
        if self.source.upload is not None:
            update["inversion"] = (self.inversion or Inversion()).resolved(model)
        return self.model_copy(update=update)
