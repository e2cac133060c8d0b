"""What a study file may say about any workload, and about any image workload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from lrsearch.errors import UnknownNameError
from lrsearch.interfaces import LoadedWorkload, Settings
from lrsearch.workloads.models import check_name

if TYPE_CHECKING:
    import torch

    from lrsearch.workloads._image_cache import DecodedImages

Augment = Literal["none", "flip", "crop", "crop_flip"]


class WorkloadSettings(Settings, ABC):
    """Batch size, the share of the training data that each replicate seed holds back for validation, first weights."""

    batch_size: int = Field(default=128, ge=1)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    start_from: Path | None = None
    """What `torch.save(model.state_dict(), path)` wrote: every trial and range test starts from these weights."""
    new_layers: tuple[str, ...] = ()
    """Globs over the names in the model's state_dict, such as `fc.*`: what they match is drawn anew, not loaded."""

    @model_validator(mode="after")
    def _new_layers_of_something(self) -> Self:
        if self.new_layers and self.start_from is None:
            raise ValueError("new_layers names what not to load: give start_from too")
        return self

    @property
    def measures(self) -> str | None:
        """The name of the metric; None where it shows only when data are loaded."""
        return None

    @abstractmethod
    def load(self, device: torch.device, seed: int) -> LoadedWorkload: ...


class ImageWorkload(WorkloadSettings):
    """Images in classes, read as uint8 by `read` and batched on the device."""

    title: ClassVar[str]
    model: str
    train_limit: int | None = Field(default=None, ge=1)
    """Training images kept, before validation is split off: the same stratified subset for every seed."""
    augment: Augment = "none"
    """`crop`: shift by up to 4 pixels over black borders. `flip`: mirror half of the images."""

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        try:
            check_name(name)
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return name

    @property
    def measures(self) -> str:
        return "accuracy"

    @property
    def label(self) -> str:
        """What the report calls the data."""
        return self.title

    @abstractmethod
    def read(self) -> DecodedImages:
        """Return all images. Called once per process; depends on the fields that say where and how to read alone."""

    def load(self, device: torch.device, seed: int) -> LoadedWorkload:
        from lrsearch.workloads._images import load_images

        return load_images(self, device, seed)


class FolderWorkload(ImageWorkload):
    """Images in files of one folder, which are decoded."""

    data_root: Path
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    image_size: int | None = Field(default=None, ge=1)
    """Cut to the central square and resize to this many pixels; None: as they are, all of one size."""
    color: Literal["rgb", "grayscale"] = "rgb"

    @property
    def label(self) -> str:
        return self.data_root.name or self.title
