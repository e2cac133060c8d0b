"""The benchmarks in small: their arithmetic, that all sides have the same work, and that each program trains."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import choice, fixed_costs, gang_equality, gangs, grid_search, harness, one_trial, service, tasks
from benchmarks.harness import Report, Run, Side, Spread, alternate, program, ratios, spreads
from benchmarks.programs import in_turn
from lrsearch.config import load_study
from lrsearch.timing import core_seconds
from lrsearch.trial import CurvePoint
from lrsearch.workloads import models
from lrsearch.workloads.digits import Digits

DIGITS = tasks.Options("digits", 1_438, 32, 2, "float32", 0, (0.01, 0.05))
WORK = ["--task", "digits", "--images", 1_438, "--epochs", 2, "--batch-size", 32, "--rates"]
TRIALS = {"ours": (), "bare_loop": (), "dataloader": (), **one_trial.PEERS}


def run(side: str, number: int, seconds: float, other: float | None = 0.0, error: str | None = None) -> Run:
    return Run(side, number, seconds, other, began=0.0, error=error)


class TestNumbers:
    def test_a_ratio_is_that_of_the_same_round_and_failed_runs_have_none(self) -> None:
        runs = [run("a", 0, 1.0), run("b", 0, 3.0), run("a", 1, 2.0), run("b", 1, 4.0), run("a", 2, 9.0)]
        runs += [run("b", 2, 1.0, error="exit code 1")]
        assert ratios(runs, lambda one: one.seconds, "a") == {"b": Spread(2.5, 2.0, 3.0)}
        assert spreads(runs, lambda one: one.seconds)["b"] == Spread(3.5, 3.0, 4.0)

    def test_a_run_beside_a_quarter_of_a_core_is_marked(self) -> None:
        assert [run("a", 0, 1.0, load).marked for load in (None, 0.25, 0.26)] == [False, False, True]

    def test_rates_are_even_in_the_logarithm(self) -> None:
        grid = harness.rates(1e-4, 1.0, 16)
        assert (grid[0], grid[-1], len(grid)) == (1e-4, 1.0, 16)
        assert np.diff(np.log(grid)) == pytest.approx(np.log(1e4) / 15, rel=1e-3)

    def test_epochs_of_the_two_sides_are_compared_with_their_neighbours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 3.0, 5.0, 6.0, 16.0, 26.0, 30.0])
        monkeypatch.setattr("benchmarks.programs.in_turn.time.perf_counter", lambda: next(times))
        epochs = itertools.count()
        turns = in_turn.Turns(epochs, reports=2)  # from 0
        point = CurvePoint(1, 1.0, 0.1, 0.5, 0.5, 0.5, 1.0)
        for member in ("a", "b", "a", "b"):  # the first epoch ends at 3, the second, that begins at 6, at 16
            turns.report(member, point)
        assert (turns.ratios, next(epochs)) == ([1.5, 1.0], 2)

    def test_the_clock_leaves_out_the_first_step_and_evaluations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 5.0, 7.0, 100.0, 103.0])
        monkeypatch.setattr("benchmarks.tasks.time.perf_counter", lambda: next(times))
        clock = tasks.TrainClock()
        clock.begin()  # at 0
        clock.stepped()  # at 5: the first step had to warm up
        clock.stepped()
        clock.end()  # at 7
        clock.begin()  # at 100: an evaluation lay between
        clock.stepped()
        clock.end()  # at 103
        assert (clock.steps, clock.seconds) == (3, 5.0)


def test_sides_take_turns_and_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    write = f"open({str(trace)!r}, 'a').write"
    sides = [
        Side("good", [sys.executable, "-c", f"{write}('a'); print('noise'); print('{{\"x\": 2}}')"]),
        Side("bad", [sys.executable, "-c", f"{write}('b'); raise SystemExit('no such thing')"]),
        Side("absent", ["false"], needs=["no_such_package"]),
    ]
    runs = alternate(sides, 2, threads=1)
    assert trace.read_text() == "abab"
    assert [one.values.get("x") for one in runs] == [2, None, 2, None]
    assert "no such thing" in (runs[1].error or "")
    report = Report("small", "A small one", {"repeats": 2}, runs)
    report.add_ratios(lambda one: one.seconds, "good", ["bad"], "exec to exit")
    assert report.finish(spreads(runs, lambda one: one.seconds), "seconds", tmp_path / "results") == 1
    printed = capsys.readouterr()
    assert "absent is left out: no_such_package is not installed" in printed.out
    assert "other load" in printed.out
    assert "FAILED: bad" in printed.err
    (written,) = (tmp_path / "results").glob("*.json")
    content = json.loads(written.read_text())
    assert len(content["runs"]) == 4
    assert content["machine"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert len(list((tmp_path / "results").iterdir())) == 2, "and a picture"


def test_processor_time_of_a_program_and_of_what_it_leaves_behind_is_not_other_load() -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.5: pass\nprint('{}')"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}], start_new_session=True)\n"
    before = core_seconds()
    (found,) = alternate([Side("burns", [sys.executable, "-c", orphan + burn])], 1, threads=1)
    assert found.error is None
    assert core_seconds() - before >= 1.0


class TestTheSameWork:
    def test_splits_and_images_are_those_of_lrsearch(self) -> None:
        loaded = Digits().load(torch.device("cpu"), tasks.SEED)
        train, validation, test = tasks.arrays(DIGITS)
        for (inputs, targets), name in ((validation, "validation"), (test, "test")):
            batches = list(loaded.evaluation_batches(name))  # type: ignore[arg-type]  # one of the splits
            assert targets.tolist() == torch.cat([one for _, one in batches]).tolist()
            expected = torch.cat([one for one, _ in batches]).numpy()
            assert inputs == pytest.approx(expected, abs=0.02), "the normalisation is rounded"
        assert len(train[1]) == loaded.facts.train_count

    @pytest.mark.parametrize("task", ["lenet", "digits"])
    def test_the_study_file_is_valid_and_has_the_same_rates(self, task: str, tmp_path: Path) -> None:
        work = DIGITS._replace(task=task)
        more = {"training": {"precision": "bfloat16"}, "executor": {"name": "process", "slots": 2}}
        side = grid_search.our_side("small", work, more, tmp_path)
        config = load_study(tmp_path / "small.yaml")
        assert side.command[3:5] == ["run-study", str(tmp_path / "small.yaml")]
        assert config.training_plan().precision == "bfloat16"
        assert config.training_plan().optimizer.settings["momentum"] == tasks.MOMENTUM
        assert config.resolved()["strategies"]["grid"]["learning_rates"] == list(DIGITS.rates)

    def test_each_gang_is_of_models_that_fit_their_images(self) -> None:
        for case in (gangs.CASES | gangs.GPU_CASES).values():
            assert case.images * (1 - tasks.VALIDATION_FRACTION) >= case.batch_size

    @pytest.mark.parametrize("model", gangs.GPU_MODELS)
    def test_each_model_of_a_gpu_can_be_built(self, model: str) -> None:
        channels, size = (1, 8) if gangs.GPU_MODELS[model][0] == "digits" else (3, 32)
        assert models.build(model, (channels, size, size), 10)


class TestChoice:
    def test_what_was_chosen_is_over_the_fastest_that_sixteen_trials_can_have(self) -> None:
        def timing(processes: int, size: int, seconds: float) -> dict[str, object]:
            return {"precision": "float32", "processes": processes, "gang_size": size, "step_seconds": seconds}

        timings = [timing(1, 1, 5.0), timing(1, 8, 4.0), timing(2, 8, 2.0), timing(2, 16, 1.0)]
        values = {"precision": "float32", "processes": 1, "gang_size": 8, "steps": 100}
        runs = [
            replace(run("mlp survey", 0, 1.0), values={"timings": timings}),
            replace(run("mlp given", 0, 1.0), values={"seconds": 3.0}),
            replace(run("mlp choose", 0, 1.0), values={**values, "seconds": 5.0}),
        ]
        report = Report("choice", "", {}, runs)
        assert choice._judge("mlp", runs, report) == {"mlp": Spread(2.0, 2.0, 2.0)}
        printed = "\n".join(report.lines)
        assert "mlp: chosen over fastest alone: 0.8 (0.8 to 0.8) times" in printed
        assert "mlp: choosing: 0.5 % of the 400 s of the study's steps (2.0 s)" in printed

    def test_a_choice_that_no_survey_has_is_named_and_loses_nothing(self) -> None:
        values = {"precision": "float32", "processes": 3, "gang_size": 5, "steps": 100, "seconds": 5.0}
        timings = [{"precision": "float32", "processes": 1, "gang_size": 1, "step_seconds": 1.0}]
        runs = [
            replace(run("mlp survey", 0, 1.0), values={"timings": timings}),
            replace(run("mlp choose", 0, 1.0), values=values),
        ]
        report = Report("choice", "", {}, runs)
        assert choice._judge("mlp", runs, report) == {}
        assert report.lines == ["mlp: gangs of 5, float32, 3 processes was chosen, which no survey times"]

    @pytest.mark.parametrize("name", [name for name in choice.CASES if "data_root" not in choice.CASES[name].workload])
    def test_its_study_files_are_valid(self, name: str, tmp_path: Path) -> None:
        file = tmp_path / "study.yaml"
        file.write_text(choice.study(choice.CASES[name], gangs="auto", precision="auto", slots="auto"))
        assert load_study(file).gangs == "auto"


@pytest.mark.slow
class TestPrograms:
    def test_a_choice_is_among_those_that_are_surveyed(self, tmp_path: Path) -> None:
        assert choice.main(["--cases", "diabetes", "--repeats", "1", "--results", str(tmp_path)]) == 0
        (written,) = tmp_path.glob("*.json")
        found = json.loads(written.read_text())
        values = {one["side"]: one["values"] for one in found["runs"]}
        surveyed = [tuple(one[key] for key in choice.HOW) for one in values["diabetes survey"]["timings"]]
        assert tuple(values["diabetes choose"][key] for key in choice.HOW) in surveyed
        assert {"diabetes: chosen over fastest", "diabetes: choosing"} <= found["numbers"].keys()

    @pytest.mark.parametrize("name", TRIALS)
    def test_each_way_of_training_once_learns(self, name: str) -> None:
        (found,) = alternate([_needed(Side(name, program(name, *WORK, 0.05), TRIALS[name]))], 1, 1)
        assert found.error is None
        assert found.values["steps"] == 70
        assert found.values["accuracy"] > 0.85
        assert found.values["images_per_second"] > 0

    def test_what_the_service_adds_is_told_of_each_side(self, tmp_path: Path) -> None:
        """How much that is, a machine that others share does not say: the benchmark does."""
        few = ["--only", "digits", "digits gang", "--epochs", "3", "--repeats", "1", "--threads", "1"]
        assert service.main([*few, "--results", str(tmp_path)]) == 0
        (written,) = tmp_path.glob("*.json")
        content = json.loads(written.read_text())
        found = {one["side"]: one["values"] for one in content["runs"]}
        assert list(found) == ["digits", "digits, control", "digits gang", "digits gang, control"]
        for side, values in found.items():
            assert values["epochs"] == 2, "of three; in the first both warm up"
            assert -100 < values["more_percent"] < math.inf
            assert content["numbers"][side]["median"] == values["more_percent"]

    @pytest.mark.parametrize("name", grid_search.PEERS)
    def test_each_way_of_searching_finds_the_better_rate(self, name: str) -> None:
        side = Side(name, program(name, *WORK, 1e-5, 0.05), grid_search.PEERS[name])
        (found,) = alternate([_needed(side)], 1, 1)
        assert found.error is None
        assert (found.values["rate"], found.values["trials"]) == (0.05, 2)
        assert found.values["accuracy"] > 0.85

    def test_lrsearch_finds_the_better_rate(self, tmp_path: Path) -> None:
        work = DIGITS._replace(rates=(1e-5, 0.05))
        (found,) = alternate([grid_search.our_side("ours", work, {}, tmp_path)], 1, 1)
        assert found.error is None
        assert (found.values["rate"], found.values["trials"]) == (0.05, 2)
        assert 0 < found.values["search_seconds"] < found.seconds

    def test_a_gang_ends_where_its_first_member_ends_alone(self, tmp_path: Path) -> None:
        arguments = ["--cases", "mlp_32x16", "--epochs", "1", "--repeats", "1", "--threads", "1"]
        assert gangs.main([*arguments, "--results", str(tmp_path)]) == 0
        (written,) = tmp_path.glob("*.json")
        alone, *together = json.loads(written.read_text())["runs"]
        assert alone["values"]["members"] == 1
        assert len(together) == (2 if shutil.which("g++") else 1), "with a compiled step, too"
        for found in together:
            assert found["values"]["members"] == 16
            assert found["values"]["loss"][0] == pytest.approx(alone["values"]["loss"][0], rel=1e-3)

    def test_the_members_of_a_gang_are_as_near_to_trials_alone_as_these_are_to_themselves(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(gang_equality, "CASES", gang_equality.CASES[2:3])
        monkeypatch.setattr(gang_equality, "STEPS", 5)
        assert gang_equality.main([]) == 0
        [line] = [one for one in capsys.readouterr().out.splitlines() if one.startswith("small_cnn")]
        one_step, few_steps, _, _ = line.partition("two seeds")[2].split()
        assert float(one_step) < 5e-7
        assert float(few_steps) < 5e-5

    def test_fixed_costs_are_measured(self, tmp_path: Path) -> None:
        few = ["--only", "help", "first_step", "worker", "trial", "--repeats", "1", "--results", str(tmp_path)]
        assert fixed_costs.main(few) == 0
        (written,) = tmp_path.glob("*.json")
        content = json.loads(written.read_text())
        numbers, [whole] = content["numbers"], [one for one in content["runs"] if one["side"] == "lrsearch run-study"]
        assert 0 < numbers["lrsearch run-study: exec to first step, s"]["median"] < whole["seconds"], "exec to exit"
        trial, fixed = (numbers[name]["median"] for name in ("a trial of one step, ms", "a trial's fixed cost, ms"))
        assert trial > fixed > 0, "of the same trials: other steps are of another moment"
        assert numbers["a step, ms"]["median"] > 0


def _needed(side: Side) -> Side:
    if side.missing:
        pytest.skip(f"{', '.join(side.missing)} is not installed: make bench installs it")
    return side
