"""Optuna's samplers as functions of a history.

A study is built in memory for every question and thrown away. What Optuna keeps between trials is either derived from
the trials (TPE, GP) or comes back by asking for all earlier trials again, in order (CMA-ES, QMC).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeGuard

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import UsageError
from lrsearch.strategies.optuna_search import generation_size
from lrsearch.strategies.space import Dimension, Number, value_in
from lrsearch.trial import FINISHED_STATUSES, CurvePoint, History, Trial

Space = Sequence[Dimension]
Values = dict[str, Number]


def draw_model(
    history: History, space: Space, sampler: Literal["tpe", "gp"], startup_trials: int, round_size: int = 1
) -> tuple[Values, bool] | None:
    """Return the next values of TPE or GP, and whether a model made them; None while the round before is not over.

    Failed and diverged trials are told as the worst value (see `told_value`), running ones as running; so are, whatever
    became of them, those of the same round, so that it makes no difference how many of a round run at once.
    """
    number = len(history.trials)
    begun = number - number % round_size
    known = history.trials[:begun]
    if round_size > 1 and any(trial.status not in FINISHED_STATUSES for trial in known):
        return None
    samplers = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
    study = new_study(history, samplers[sampler](seed=stable_seed(history, number), n_startup_trials=startup_trials))
    worst = worst_value(history, known)
    for trial in (*known, *(Trial(one.number, one.proposal, "running") for one in history.trials[begun:])):
        study.add_trial(_frozen(trial, space, worst, keep_pruned=sampler == "tpe"))
    ended = sum(trial.status in FINISHED_STATUSES for trial in known)
    return _asked(study, space), ended >= startup_trials


def draw_cmaes(history: History, space: Space) -> tuple[Values, bool] | None:
    """Return the next values of CMA-ES, and whether its generation was bred; None while a generation is incomplete.

    A generation's draws depend on the results of the generations before it alone, so that they are the same however
    many run at once.
    """
    size = generation_size(len(space))
    number = len(history.trials)
    bred = number - number % size
    if any(trial.status not in FINISHED_STATUSES for trial in history.trials[:bred]):
        return None
    seed = stable_seed(history, 0)
    sampler = optuna.samplers.CmaEsSampler(seed=seed, popsize=size)
    study = _study_with_space(history, space, sampler)
    for start in range(0, bred, size):
        end = start + size
        asked = [_ask_again(study, space, trial) for trial in history.trials[start:end]]
        worst = worst_value(history, history.trials[:end])
        for ours, theirs in zip(history.trials[start:end], asked, strict=True):
            study.tell(theirs, told_value(ours, worst))
    for trial in history.trials[bred:]:
        _ask_again(study, space, trial)
    return _asked(study, space), bred > 0


def draw_qmc(history: History, space: Space) -> tuple[Values, bool]:
    """Return the next point of a Sobol sequence that is scrambled by the search's seed; never guided by a model."""
    seed = stable_seed(history, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # QMCSampler is "experimental" since 3.0
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed)
    study = _study_with_space(history, space, sampler)
    for trial in history.trials:
        _ask_again(study, space, trial)
    return _asked(study, space), False


def new_study(
    history: History,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Return an empty study in memory for the history's metric. Nothing is pruned unless a pruner is given."""
    maximize = history.facts is None or history.facts.higher_is_better
    with _quiet():
        return optuna.create_study(
            study_name=f"{history.study}/{history.strategy}/{history.seed}",
            direction="maximize" if maximize else "minimize",
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=pruner or optuna.pruners.NopPruner(),
        )


def worst_value(history: History, trials: Sequence[Trial]) -> float:
    """Return the worse of the chance level and the worst value in `trials`: what failed and diverged ones are told as.

    Samplers ignore trials that are told as failed, and go on proposing the rates that diverge. 0 where nothing is
    known: then all values are equal.
    """
    facts = history.facts
    values = [value for trial in trials if (value := _value(trial)) is not None]
    if facts is not None and facts.chance is not None:
        values.append(facts.chance)
    if not values:
        return 0.0
    return min(values) if facts is None or facts.higher_is_better else max(values)


def told_value(trial: Trial, worst: float) -> float:
    """Return the value of a finished trial; a pruned one's is that of its last evaluation."""
    value = _value(trial)
    return worst if value is None else value


def intermediate_values(curve: Sequence[CurvePoint]) -> dict[int, float]:
    """Return the validation metric by evaluation: 1 is the first. Evaluations without a finite value are left out."""
    return {
        count: point.validation_metric for count, point in enumerate(curve, start=1) if _finite(point.validation_metric)
    }


def stable_seed(history: History, number: int) -> int:
    """Return a seed below 2^32 that is the same in every process and version of Python."""
    text = f"{history.study}/{history.strategy}/{history.seed}/{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _value(trial: Trial) -> float | None:
    if trial.status == "completed" and _finite(trial.validation_metric):
        return trial.validation_metric
    if trial.status == "pruned":
        return next(reversed(intermediate_values(trial.curve).values()), None)
    return None


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _frozen(trial: Trial, space: Space, worst: float, *, keep_pruned: bool) -> FrozenTrial:
    """Return our trial as Optuna's. GP ignores pruned trials: unless `keep_pruned` they are completed early."""
    state = TrialState.COMPLETE
    if trial.status not in FINISHED_STATUSES:
        state = TrialState.RUNNING
    elif trial.status == "pruned" and keep_pruned:
        state = TrialState.PRUNED
    return optuna.trial.create_trial(
        state=state,
        value=told_value(trial, worst) if state == TrialState.COMPLETE else None,
        params={dimension.name: value_in(trial.proposal, dimension.name) for dimension in space},
        distributions=_distributions(space),
        intermediate_values=intermediate_values(trial.curve),
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {dimension.name: dimension.distribution() for dimension in space}


def _asked(study: optuna.Study, space: Space) -> Values:
    """Ask for the next trial and return its values."""
    params = study.ask(_distributions(space)).params
    return {dimension.name: dimension.clip(params[dimension.name]) for dimension in space}


def _study_with_space(history: History, space: Space, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """Return a study that knows the search space from a made-up trial; else Optuna draws the first one at random.

    CMA-ES leaves the made-up one out of its generations, and QMC does not look at values.
    """
    study = new_study(history, sampler)
    lowest = {dimension.name: dimension.low for dimension in space}
    study.add_trial(optuna.trial.create_trial(value=0.0, params=lowest, distributions=_distributions(space)))
    return study


def _ask_again(study: optuna.Study, space: Space, trial: Trial) -> optuna.trial.Trial:
    """Ask for a trial that was already proposed. Raises UsageError when the answer is another one now."""
    asked = study.ask(_distributions(space))
    for dimension in space:
        now, then = dimension.clip(asked.params[dimension.name]), value_in(trial.proposal, dimension.name)
        if then is None or not math.isclose(now, then, rel_tol=1e-9):
            raise UsageError(
                f"Trial {trial.number} of {study.study_name} has the {dimension.name.replace('_', ' ')} {then}, but "
                f"asking its sampler again gives {now}: it was begun with other versions of optuna, cmaes, numpy or "
                "scipy. Go on with those, or start the study anew."
            )
    return asked


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back Optuna's line about each new study."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
