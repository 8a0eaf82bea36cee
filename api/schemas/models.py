"""Schemas of the models that jobs can name."""

from typing import Self

from pydantic import BaseModel

from jobs.models.manifest import ModelEntry
from jobs.spec.job_spec import JobSpec, Source


class ModelView(BaseModel):
    """One model, with the options that its jobs take by default."""

    name: str
    resolution: int  # pixels, width and height
    num_ws: int  # rows of w+
    classes: int  # of a conditional model, whose jobs must name one; else 0
    licence: str
    layout: str  # of the file it was converted from
    sha256: str
    truncation_psi: float
    learning_rate: float
    feature_resolution: int

    @classmethod
    def of(cls, entry: ModelEntry) -> Self:
        """Return the view of a model's entry in the manifest."""
        copied = {name: getattr(entry, name) for name in ("name", "resolution", "num_ws", "licence", "layout", "sha256")}
        spec = JobSpec(model=entry.name, source=Source(seed=0)).resolved(entry)
        defaults = {name: getattr(spec.drag, name) for name in ("learning_rate", "feature_resolution")}
        return cls(**copied, classes=entry.c_dim, truncation_psi=entry.defaults.truncation_psi, **defaults)


class ModelPage(BaseModel):
    """All models."""

    models: list[ModelView]  # by name
