"""scikit-learn's diabetes table: 442 patients, ten measurements each, and the disease's progression a year later.

Regression with the mean squared error; the metric is R2, the share of the variance that the model explains: 1 is
perfect, 0 is what a model gets that always answers the mean, and worse than that is negative. Inputs and targets are
standardised by the training split alone. The data come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lrsearch.workloads._settings import WorkloadSettings

if TYPE_CHECKING:
    import torch

    from lrsearch.interfaces import LoadedWorkload


class Diabetes(WorkloadSettings):
    """The test set is a fixed fifth."""

    name: Literal["diabetes"] = "diabetes"
    batch_size: int = Field(default=16, ge=1)
    model: Literal["mlp"] = "mlp"

    @property
    def measures(self) -> str:
        return "r2"

    def load(self, device: torch.device, seed: int) -> LoadedWorkload:
        from lrsearch.workloads._diabetes import load_diabetes_table

        return load_diabetes_table(self, device, seed)
