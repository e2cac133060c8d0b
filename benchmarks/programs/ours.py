"""lrsearch: one trial, as every study runs them."""

from __future__ import annotations

from benchmarks.tasks import MOMENTUM, SEED, Options, options, tell, workload
from lrsearch.engine import run_trials
from lrsearch.optimizers import Sgd
from lrsearch.training import keep_freed_memory
from lrsearch.trial import Choice, CurvePoint, Proposal, TrainingPlan, TrialResult, TrialSpec


class Silence:
    """A channel to nobody."""

    def report(self, uuid: str, point: CurvePoint) -> bool:
        return True


def specs(chosen: Options) -> list[TrialSpec]:
    """Return a trial for each of the rates."""
    settings = workload(chosen)
    plan = TrainingPlan(
        epochs=chosen.epochs,
        optimizer=Choice("sgd", Sgd(name="sgd", momentum=MOMENTUM).model_dump(exclude={"name"})),
        precision="bfloat16" if chosen.precision == "bfloat16" else "float32",
        device="cpu",
    )
    return [
        TrialSpec(
            uuid=f"trial {number}",
            study="benchmark",
            strategy="grid",
            seed=SEED,
            number=number,
            proposal=Proposal("train", Choice("constant"), learning_rate=rate),
            workload=Choice(settings["name"], {key: value for key, value in settings.items() if key != "name"}),
            training=plan,
        )
        for number, rate in enumerate(chosen.rates)
    ]


def checked(result: TrialResult) -> TrialResult:
    """Return it, or end the program: a trial that failed has no figures."""
    if result.status == "failed":
        raise SystemExit(result.traceback or result.error)
    return result


if __name__ == "__main__":
    keep_freed_memory()  # as preparing a study does
    chosen = options()
    result = checked(run_trials(specs(chosen), Silence())[0])
    tell(
        images_per_second=(result.train_steps - 1) * chosen.batch_size / result.phase_seconds["train"],
        steps=result.train_steps,
        accuracy=result.validation_metric,
    )
