from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lrsearch import timing
from lrsearch.errors import DeviceFaultError
from lrsearch.timing import DeviceStopwatch, core_seconds, synchronizer, waited_seconds
from lrsearch.trial import PHASES, charged_seconds


def test_consecutive_segments_add_up_to_the_whole_span() -> None:
    read: list[int] = []

    def clock() -> int:
        read.append(time.perf_counter_ns())
        return read[-1]

    watch = DeviceStopwatch(clock=clock)
    watch.start("setup")
    for phase in ("train", "evaluate", "idle", "train", "test_evaluation"):
        time.sleep(0.002)
        watch.switch(phase)
    watch.stop()
    # Nothing lies between two segments.
    assert sum(watch.phase_seconds.values()) == pytest.approx((read[-1] - read[0]) / 1e9, rel=1e-9)
    assert set(watch.phase_seconds) <= set(PHASES)


def test_the_device_is_waited_for_before_each_reading_of_the_clock() -> None:
    order: list[str] = []

    def clock() -> int:
        order.append("read")
        return len(order)

    watch = DeviceStopwatch(synchronize=lambda: order.append("wait"), clock=clock)
    watch.start("setup")
    watch.switch("train")
    watch.stop()
    assert order == ["wait", "read"] * 3


def test_a_device_that_has_stopped_at_a_fault_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nFor debugging consider ...")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(DeviceFaultError, match=r"^its device failed: CUDA error: device-side assert triggered$"):
        synchronizer(torch.device("cuda"))()


def test_stopping_twice_charges_once() -> None:
    ticks = iter([0, 10, 20])
    watch = DeviceStopwatch(clock=lambda: next(ticks))
    watch.start("train")
    watch.stop()
    watch.stop()
    assert watch.phase_seconds == {"train": 1e-08}


def test_core_seconds_see_the_work_of_this_process() -> None:
    before = core_seconds()
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    assert core_seconds() - before >= 0.045


def test_phases_shown_apart_are_not_charged() -> None:
    assert charged_seconds({"train": 1.0, "lost": 0.25, "data": 5.0, "test_evaluation": 5.0}) == 1.25


def test_waiting_for_a_processor_is_that_of_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited_seconds() >= 0
    monkeypatch.setattr(timing, "THREADS", tmp_path)
    assert waited_seconds() == 0, "not Linux"
    for number, text in enumerate(("42 1500000000 7\n", "1 500000000 1\n", "")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(text)
    assert waited_seconds() == 2.0
