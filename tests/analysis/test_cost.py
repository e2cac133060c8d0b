"""Bills: all attempts of all trials, whatever became of them."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lrsearch.analysis import Charge, DeviceModel, bill, device_models
from lrsearch.errors import UsageError
from lrsearch.storage.export import export_rows, write_rows
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


def test_a_plain_mapping_of_phases_is_a_bill() -> None:
    total = bill({"range_test": 2, "train": 5.0, "lost": 1.0, "test_evaluation": 4.0, "data": 3.0}, 3.6)
    assert total.charged_device_seconds == 8.0
    assert total.usd == pytest.approx(0.008)
    assert total.wasted_share == 1 / 8
    assert (total.energy_joules, total.core_seconds, total.device) == (None, None, None)
    assert bill({"train": 1.0}, {"usd_per_device_hour": 3600, "as_of": "2026-11-23"}).usd == 1.0


def test_a_phase_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match=r"Unknown phase 'trian'.*Did you mean 'train'"):
        bill({"trian": 1.0})
    with pytest.raises(UsageError, match="Unknown phase 'cooling'"):
        bill([{"cooling_seconds": 1.0}])


def test_the_exported_rows_give_the_bill_of_the_record() -> None:
    record = make_record()
    stream = io.StringIO()
    write_rows(export_rows(record, "trials"), "csv", stream)
    stream.seek(0)
    from_rows, from_record = bill(list(csv.DictReader(stream)), 2.5), bill(record, 2.5)
    assert from_rows.phase_seconds == pytest.approx(from_record.phase_seconds)
    assert from_rows.wasted_seconds == pytest.approx(from_record.wasted_seconds)
    assert from_rows.usd == pytest.approx(from_record.usd)
    assert from_rows.device == from_record.device
    assert from_rows.core_seconds is None  # nor does the record know it: an attempt was killed
    assert from_record.core_seconds is None


def test_energy_is_known_only_where_every_trial_says_so() -> None:
    rows: list[Mapping[str, Any]] = [
        {"train_seconds": 1.0, "energy_joules": 5.0},
        {"train": 2.0, "energy_joules": "7"},
    ]
    assert bill(rows).energy_joules == 12.0
    assert bill([*rows, {"train_seconds": 1.0, "energy_joules": ""}]).energy_joules is None
    assert bill([Charge({"train": 1.0}, energy_joules=0.0)]).energy_joules == 0.0


def test_the_energy_of_a_killed_attempt_is_not_known() -> None:
    metered = [
        replace(trial, result=replace(some(trial.result), energy_joules=2.0)) for trial in make_record(seeds=[0]).trials
    ]
    assert bill(metered).energy_joules is None
    assert bill([trial for trial in metered if len(trial.attempts) == 1]).energy_joules == 2.0 * (len(metered) - 1)
    assert bill([{"train": 1.0, "energy_joules": 2.0, "attempts": "2"}]).energy_joules is None


def test_kinds_of_device_in_plain_rows_are_never_mixed() -> None:
    with pytest.raises(UsageError, match="never added together"):
        bill([{"train": 1.0, "device_kind": "cpu"}, {"train": 1.0, "device_kind": "cuda"}])
    with pytest.raises(UsageError, match="never added together"):
        bill(
            [
                Charge({"train": 1.0}, devices=(DeviceModel("cuda", "A"),)),
                Charge({}, devices=(DeviceModel("cuda", "B"),)),
            ]
        )
