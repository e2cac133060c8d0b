"""The optimizers and their settings, without the rate: that is what a study looks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.interfaces import Settings

NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Sgd(Settings):
    """torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    momentum: NotNegative = 0.0
    dampening: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _check_nesterov(self) -> Sgd:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        return self


class Adam(Settings):
    """torch.optim.Adam."""

    name: Literal["adam"] = "adam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    amsgrad: bool = False


class AdamW(Settings):
    """torch.optim.AdamW."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.01
    amsgrad: bool = False


class RmsProp(Settings):
    """torch.optim.RMSprop."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: NotNegative = 0.99
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    momentum: NotNegative = 0.0
    centered: bool = False


class Adagrad(Settings):
    """torch.optim.Adagrad."""

    name: Literal["adagrad"] = "adagrad"
    lr_decay: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    initial_accumulator_value: NotNegative = 0.0
    eps: NotNegative = 1e-10


class Adadelta(Settings):
    """torch.optim.Adadelta."""

    name: Literal["adadelta"] = "adadelta"
    rho: Annotated[float, Field(ge=0, le=1)] = 0.9
    eps: NotNegative = 1e-6
    weight_decay: NotNegative = 0.0


class ScheduleFreeAdamW(Settings):
    """schedulefree.AdamWScheduleFree (extra `lrfree`), to be held at a constant rate behind a warm-up.

    Defazio et al., "The Road Less Scheduled", 2024, https://arxiv.org/abs/2405.15682.
    """

    name: Literal["schedulefree_adamw"] = "schedulefree_adamw"
    betas: tuple[ProperFraction, Fraction] = (0.9, 0.999)
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0


class ScheduleFreeSgd(Settings):
    """schedulefree.SGDScheduleFree (extra `lrfree`), to be held at a constant rate behind a warm-up."""

    name: Literal["schedulefree_sgd"] = "schedulefree_sgd"
    momentum: ProperFraction = 0.9
    weight_decay: NotNegative = 0.0


class Prodigy(Settings):
    """prodigyopt.Prodigy (extra `lrfree`), which finds its step size itself: give it the rate 1, best with `cosine`.

    Mishchenko and Defazio, "Prodigy", 2023, https://arxiv.org/abs/2306.06101. Where it stays at its first estimate,
    raise `d0` to 1e-5; with a warm-up, turn `safeguard_warmup` on.
    """

    name: Literal["prodigy"] = "prodigy"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    safeguard_warmup: bool = False
    d0: Positive = 1e-6
    d_coef: Positive = 1.0


OPTIMIZERS: Mapping[str, type[Settings]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RmsProp,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "schedulefree_adamw": ScheduleFreeAdamW,
    "schedulefree_sgd": ScheduleFreeSgd,
    "prodigy": Prodigy,
}
