"""Bills: all attempts of all trials, whatever became of them."""

from dataclasses import replace

import pytest

from lrsearch.analysis import bill, device_models
from lrsearch.errors import UsageError
from lrsearch.trial import CHARGED_PHASES, DeviceInfo
from tests.records import CPU, GPU, make_record, some


def test_a_bill_adds_every_charged_phase_of_every_attempt() -> None:
    record = make_record()
    by_hand = sum(
        seconds
        for trial in record.trials
        for attempt in trial.attempts
        for phase, seconds in attempt.phase_seconds.items()
        if phase in CHARGED_PHASES
    )
    total = bill(record, 2.5)
    assert total.charged_device_seconds == pytest.approx(by_hand)
    assert total.usd == pytest.approx(by_hand / 3600 * 2.5)
    assert sum(total.phase_seconds.values()) > by_hand  # data and test evaluation stand apart


def test_wasted_are_the_trials_without_a_finished_model_and_the_lost_attempts() -> None:
    record = make_record()
    wasted = sum(t.charged_device_seconds for t in record.trials if t.status in ("diverged", "failed", "pruned"))
    total = bill(record)
    assert {"diverged", "failed", "pruned"} <= {trial.status for trial in record.trials}
    assert total.wasted_seconds == pytest.approx(wasted + 0.8)  # one attempt of a completed grid trial was killed
    assert total.wasted_share == pytest.approx((wasted + 0.8) / total.charged_device_seconds)


def test_without_a_price_there_is_no_money_and_no_zero() -> None:
    assert bill(make_record()).usd is None


def test_core_seconds_are_unknown_where_an_attempt_was_killed() -> None:
    assert bill(make_record()).core_seconds is None
    assert some(bill(make_record(failures=False)).core_seconds) > 0


@pytest.mark.parametrize("other", [GPU, replace(CPU, name="Another Processor")])
def test_seconds_of_different_devices_are_never_added(other: DeviceInfo) -> None:
    trials = (*make_record(seeds=[0]).trials, *make_record(seeds=[0], device=other).trials)
    assert len(device_models(trials)) == 2
    with pytest.raises(UsageError, match="never added together"):
        bill(trials)
