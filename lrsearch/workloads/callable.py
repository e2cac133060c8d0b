"""The user's own model and data.

In the study file:

    workload:
      name: callable
      model: mypackage.nets:small_net      # called without arguments for every trial; returns a new torch.nn.Module
      data: mypackage.tables:customers     # called without arguments once per process
      batch_size: 64

`data` returns `{"train": part, "test": part}`, optionally with a "validation" part; or the tuple `(train, test)` or
`(train, validation, test)`. Each part is one of

    (inputs, targets)    tensors or arrays with one row per example; they are moved to the device once
    a torch Dataset      with a length; an item is (input, target); read through once for its targets. Where inputs are
                         tensors of one shape, at most 1 GiB with the targets, it is read once more: if all is the same
                         then, and no chance was drawn, it is kept as tensors, and not read again. One that changes
                         later, as by a count of its epochs, needs a training DataLoader around it
    a torch DataLoader   of a Dataset with a length. The training loader yields its own batches (their order comes from
                         the trial's seed, also a DistributedSampler's, and its batch size must be workload.batch_size).
                         Of the others the data set, the examples that the sampler names (all: drop_last drops none),
                         the collate function, which must give one target per example, and the workers are used, as of
                         a Dataset. A training loader needs a validation part beside it.

Inputs are taken as they are: scale them yourself. They may be floats (float64 becomes float32) or whole numbers (token
ids), of any shape: tables (rows, features), images (rows, channels, height, width), sequences (rows, length). Without a
validation part, `validation_fraction` of the training part is held back, another one for each seed, stratified by class
where targets are class ids. The test part is never split. What a Dataset draws at each reading, such as augmentation,
it draws for the rows that are held back, too: give a validation part without it.

By default targets are class ids 0, 1, ... (whole numbers, one per row), the model returns one value per class, the loss
is cross-entropy and the metric accuracy. For anything else name your own, as module:function of (outputs, targets).
Each is one tensor: what a model with several heads or a VAE returns, and its targets, stand side by side (torch.cat).

      loss: torch.nn.functional:mse_loss   # returns a scalar tensor that can be differentiated; trains nothing itself
      metric: mypackage.scores:mean_error  # returns a number; gets the whole split, on the processor
      metric_settings: {trim: 0.1}         # keyword arguments of the metric, if it takes any
      metric_name: mean_error
      higher_is_better: false
      chance: 1.7                          # the metric of a model that ignores its input, if you know it

Where a model returns (rows, 1) and targets have (rows,), a loss or metric that lets torch broadcast them, so that each
output is compared with every target, is refused.
Where outputs or weights are no finite numbers any more, as at a rate that is far too high, the trial has diverged: the
metric is not asked, and what loss or model raise by then is no error; nor, after the first step, is what torch raises
for numbers alone, such as a scale of 0 of a distribution or a matrix that has no decomposition.

torchmetrics has most metrics of the field, and is installed with lrsearch:

      metric: torchmetrics.functional.classification:multiclass_f1_score
      metric_settings: {num_classes: 10, average: macro}

Modules are looked for in `python_path`, in the current directory, then where Python looks. They are imported, and
`data` runs, with all generators (random, numpy, torch) seeded with 0, so that every process gets the same data;
generators of its own it must seed itself. Each trial begins with new generators, also those that data set, sampler and
collate function hold, but what else these count or keep goes on from the trial before. What a loss keeps does so only
where it cannot be copied: in the globals of its module, say.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from lrsearch.workloads._settings import WorkloadSettings

if TYPE_CHECKING:
    import torch

    from lrsearch.interfaces import LoadedWorkload

REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class CallableWorkload(WorkloadSettings):
    """The user's own model and data; the module's docstring is the contract."""

    name: Literal["callable"] = "callable"
    model: str
    data: str
    loss: str | None = None
    metric: str | None = None
    metric_settings: dict[str, Any] = Field(default_factory=dict)
    metric_name: str | None = None
    """What the report calls the metric; the metric function's name if not given."""
    higher_is_better: bool = True
    chance: float | None = Field(default=None)
    python_path: Path | None = None

    @field_validator("model", "data", "loss", "metric")
    @classmethod
    def _is_reference(cls, value: str | None) -> str | None:
        if value is not None and not REFERENCE.fullmatch(value):
            raise ValueError(f"must be package.module:function, got {value!r}")
        return value

    @model_validator(mode="after")
    def _metric_has_a_function(self) -> CallableWorkload:
        given = {
            "metric_settings": self.metric_settings or None,
            "metric_name": self.metric_name,
            "higher_is_better": None if self.higher_is_better else False,
            "chance": self.chance,
        }
        about_metric = [key for key, value in given.items() if value is not None]
        if self.metric is None and about_metric:
            raise ValueError(
                f"{about_metric[0]} describes a metric of your own: give metric: package.module:function too"
            )
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # a dict has no hash of its own

    @property
    def measures(self) -> str:
        return self.metric_name or (self.metric or "accuracy").rsplit(":")[-1].rsplit(".")[-1]

    def load(self, device: torch.device, seed: int) -> LoadedWorkload:
        from lrsearch.workloads._user_workload import load_user_workload

        return load_user_workload(self, device, seed)
