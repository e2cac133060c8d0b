# ruff: noqa: E501  # whole messages, as users see them
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.config import StudyConfig, diff, from_resolved, is_extension, json_schema, load_study, placed
from lrsearch.errors import StudyFileError, UsageError
from lrsearch.optimizers import OPTIMIZERS
from lrsearch.registry import names
from lrsearch.schedules import SCHEDULES
from lrsearch.strategies import STRATEGIES, Grid, RangeTested
from lrsearch.trial import Choice, ParameterGroup
from lrsearch.workloads import WORKLOADS
from tests.records import make_config

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))

GOOD = """\
# A comment.
version: 1
name: small
workload: {name: digits, model: mlp, batch_size: 32}
training:
  epochs: 5
  optimizer: {name: sgd, momentum: 0.9, weight_decay: 5e-4}
seeds: [0, 1]
rates: {low: 1e-5, high: 10}
target: {metric: accuracy, value: 0.9}
price: {usd_per_device_hour: 2.50, as_of: 2026-11-23}
strategies:
  grid: {name: grid, points: 4, schedule: {name: constant}}
  tpe:  {name: optuna_search, trials: 4}
  clr:  {name: range_tested, schedule: {name: triangular2, cycles: 2}}
"""


def load(folder: Path, text: str) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(text)
    return load_study(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """Return what `load_study` says of `text`, without the file's name."""
    with pytest.raises(StudyFileError) as error:
        load(folder, text)
    return str(error.value).replace(f"{folder / 'study.yaml'}:", "").splitlines()


def test_the_settings_of_a_file_are_what_was_written_and_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    plan = config.training_plan()
    assert (plan.epochs, plan.precision, plan.gradient_clip_norm, plan.device) == (5.0, "float32", None, "auto")
    written = {"momentum": 0.9, "weight_decay": 0.0005}
    assert plan.optimizer == Choice("sgd", {**written, "dampening": 0.0, "nesterov": False})
    assert config.seeds == (0, 1)
    assert (config.rates.low, config.rates.high) == (1e-5, 10.0)
    assert config.workload_choice().name == "digits"
    assert config.workload_choice().settings["batch_size"] == 32
    assert list(config.strategies) == ["grid", "tpe", "clr"]
    grid, clr = config.strategies["grid"], config.strategies["clr"]
    assert isinstance(grid, Grid)
    assert grid.points == 4
    assert isinstance(clr, RangeTested)
    assert clr.schedule.choice().settings["cycles"] == 2


def test_parameter_groups_travel_with_the_plan_of_a_trial(tmp_path: Path) -> None:
    groups = "[{pattern: '*.bias', rate_multiplier: 2, weight_decay_multiplier: 0}, {pattern: '0.*'}]"
    config = load(tmp_path, GOOD.replace("  epochs: 5", f"  epochs: 5\n  groups: {groups}"))
    assert config.training_plan().groups == (ParameterGroup("*.bias", 2.0, 0.0), ParameterGroup("0.*"))
    assert from_resolved(config.resolved()).training_plan() == config.training_plan()


@pytest.mark.parametrize(
    ("optimizer", "tested_with"),
    [
        ("sgd, momentum: 0.9, weight_decay: 5e-4", "{batch_size: 32, momentum: 0.9, weight_decay: 0.0005}"),
        ("adam", "{momentum: 0.9, weight_decay: 0}"),
        ("adadelta", "{batch_size: 32}"),
    ],
)
def test_bounds_that_were_found_with_the_studys_settings_are_taken(
    tmp_path: Path, optimizer: str, tested_with: str
) -> None:
    text = GOOD.replace("sgd, momentum: 0.9, weight_decay: 5e-4", optimizer)
    clr = load(tmp_path, text.replace("cycles: 2}", f"cycles: 2}}, max_lr: 0.1, tested_with: {tested_with}"))
    assert clr.strategies["clr"].planned_trials == 1
    assert from_resolved(clr.resolved()).fingerprint() == clr.fingerprint()


def test_an_error_is_placed_in_the_file_also_where_the_study_s_code_has_changed_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(GOOD)
    (tmp_path / "elsewhere").mkdir()

    def run() -> None:
        os.chdir("elsewhere")
        raise UsageError("target.value must be less.")

    with pytest.raises(UsageError, match=r"^study\.yaml:10:35: target\.value must be less"), placed("study.yaml"):
        run()


def test_an_error_is_told_also_where_the_file_cannot_be_read_again(tmp_path: Path) -> None:
    """As a pipe cannot, or one that its user edits while the study runs."""
    file = tmp_path / "study.yaml"
    file.touch()
    with pytest.raises(UsageError, match=r"^target\.value must be less"), placed(file):
        raise UsageError("target.value must be less.")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_that_we_ship_is_valid(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_the_default_study_is_the_one_of_the_readme() -> None:
    config = load_study(next(path for path in STUDIES if path.name == "digits.yaml"))
    assert [type(way).model_fields["name"].default for way in config.strategies.values()] == [  # type: ignore[attr-defined]  # all are pydantic models
        *("grid", "random_search", "optuna_search", "range_tested", "range_tested", "grid", "default_rate")
    ]
    assert [way.planned_trials for way in config.strategies.values()] == [8, 8, 16, 2, 2, 8, 1]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # Keys.
        ("  epochs: 5", "  epoch: 5", "6:3: training.epoch: unknown key; known: compile, device, epochs, gradient_clip_norm, "
         "groups, matmul, memory_format, optimizer, precision. Did you mean 'epochs'?"),
        ("momentum:", "momentun:", "7:26: training.optimizer.momentun: unknown key; known: dampening, momentum, name, "
         "nesterov, weight_decay. Did you mean 'momentum'?"),
        ("batch_size:", "batchsize:", "4:38: workload.batchsize: unknown key; known: augment, batch_size, model, name, "
         "new_layers, start_from, train_limit, validation_fraction. Did you mean 'batch_size'?"),
        ("points: 4", "points: 4, trials: 4", "13:33: strategies.grid.trials: unknown key; known: epochs, "
         "learning_rates, name, optimizer, points, schedule."),
        ("cycles: 2", "cycle: 2", "15:60: strategies.clr.schedule.cycle: unknown key; known: base_fraction, "
         "base_momentum, cycles, max_momentum, name, rise_fraction, stepsize_epochs, warmup_epochs. Did you mean 'cycles'?"),
        ("price:", "prize:", "11:1: prize: unknown key; known: budget, checkpoint, confirmation_seeds, executor, gangs, name, price, rates, seeds, strategies, target, training, "
         "version, workload. Did you mean 'price'?"),
        ("  epochs: 5", "  epochs: 5\n  groups: [{patern: '*'}]", "7:13: training.groups.0.patern: unknown key; known: "
         "pattern, rate_multiplier, weight_decay_multiplier. Did you mean 'pattern'?"),
        (
            "seeds: [0, 1]\n",
            "seeds: [0, 1]\nexecutor: {name: process, slots: 0}\n",
            "9:34: executor.slots: must be greater than or equal to 1 or 'auto', got 0.",
        ),
        ("  epochs: 5\n", "", "5:1: training.epochs: is missing; add it."),
        ("seeds: [0, 1]\n", "", "2:1: seeds: is missing; add it."),
        ("seeds: [0, 1]\n", "seeds: [0, 1]\nseeds: [2]\n", "9:1: seeds: is written twice, first in line 8; remove one."),
        ("  grid:", "  gr id:", "13:3: strategies.gr id: must be made of the letters a to z and A to Z, digits, '.', '_' and '-', the first a letter, a digit or '_', got 'gr id'."),
        # Names.
        ("{name: grid", "{name: gird", "13:16: strategies.grid.name: unknown strategy 'gird'; known: default_rate, grid, "
         "hyperband, optuna_search, random_search, range_tested, successive_halving. Did you mean 'grid'?"),
        ("name: sgd", "name: sdg", "7:21: training.optimizer.name: unknown optimizer 'sdg'; known: adadelta, adagrad, adam, "
         "adamw, prodigy, rmsprop, schedulefree_adamw, schedulefree_sgd, sgd. Did you mean 'sgd'?"),
        ("name: sgd", "name: AdamW", "7:21: training.optimizer.name: unknown optimizer 'AdamW'; known: adadelta, adagrad, adam, "
         "adamw, prodigy, rmsprop, schedulefree_adamw, schedulefree_sgd, sgd. Did you mean 'adamw'?"),
        ("{name: digits", "{name: digit", "4:18: workload.name: unknown workload 'digit'; known: callable, cifar10, "
         "cifar100, diabetes, digits, fashion_mnist, image_folder, mnist, multi_label_images, text. Did you mean 'digits'?"),
        ("{name: constant}", "{name: 3}", "13:50: strategies.grid.schedule.name: must be text, got 3."),
        ("{name: grid, ", "{", "13:9: strategies.grid: needs a name; known: default_rate, grid, hyperband, "
         "optuna_search, random_search, range_tested, successive_halving."),
        ("{name: constant}", "constant", "13:43: strategies.grid.schedule: must be a mapping such as {name: constant}, "
         "got 'constant'."),
        ("name: small", "name: two words", "3:7: name: must be made of the letters a to z and A to Z, digits, '.', '_' and '-', the first a letter, a digit or '_', got "
         "'two words'."),
        ("name: small", "name: ..", "3:7: name: must be made of the letters a to z and A to Z, digits, '.', '_' and '-', the first a letter, a digit or '_', got "
         "'..'."),
        # Numbers.
        ("points: 4", "points: 100000000", "13:30: strategies.grid.points: must be less than or equal to 100000, got 100000000."),
        ("epochs: 5", "epochs: '5'", "6:11: training.epochs: must be a number, got '5'; remove the quotes."),
        ("epochs: 5", "epochs: five", "6:11: training.epochs: must be a number, got 'five'."),
        ("epochs: 5", "epochs: true", "6:11: training.epochs: must be a number, got true."),
        ("epochs: 5", "epochs: 0", "6:11: training.epochs: must be greater than 0, got 0."),
        ("epochs: 5", "epochs: .inf", "6:11: training.epochs: must be a finite number, got .inf."),
        ("points: 4", "points: 4.0", "13:30: strategies.grid.points: must be a whole number, got 4.0."),
        ("points: 4", "points: yes", "13:30: strategies.grid.points: must be a whole number, got 'yes'."),
        ("points: 4", "learning_rates: [0.1, -1]", "13:44: strategies.grid.learning_rates.1: must be greater than 0, "
         "got -1."),
        ("points: 4", "learning_rates: [0.1, 20]", "13:44: strategies.grid.learning_rates.1: must lie in the study's "
         "rates, 1e-05 to 10, got 20."),
        ("points: 4", "learning_rates: []", "13:38: strategies.grid.learning_rates: must have at least 1 item, got 0."),
        ("low: 1e-5", "low: -1", "9:14: rates.low: must be greater than 0, got -1."),
        ("low: 1e-5", "low: 20", "9:8: rates: low must be smaller than high, got 20 and 10."),
        ("high: 10", "high: 1e300", "9:8: rates: must lie between 1e-30 and 1e30, got 1e-05 and 1e+300."),
        ("cycles: 2", "cycles: 0", "15:68: strategies.clr.schedule.cycles: must be greater than or equal to 1, got 0."),
        ("[0, 1]", "[0, 0]", "8:8: seeds: must differ from each other, got [0, 0]."),
        ("[0, 1]", "[]", "8:8: seeds: must have at least 1 item, got 0."),
        ("[0, 1]", "[-1]", "8:9: seeds.0: must be greater than or equal to 0, got -1."),
        ("epochs: 5", "epochs: 1e308", "6:11: training.epochs: must be less than or equal to 1000000000, got 1e+308."),
        ("[0, 1]", "3", "8:8: seeds: must be a list, got 3."),
        ("version: 1", "version: 2", "2:10: version: must be 1, got 2."),
        ("version: 1", "version: true", "2:10: version: must be 1, got true."),
        # Parameter groups.
        ("  epochs: 5", "  epochs: 5\n  groups: [{pattern: '*', rate_multiplier: -1}]", "7:44: "
         "training.groups.0.rate_multiplier: must be greater than or equal to 0, got -1."),
        ("weight_decay: 5e-4}", "weight_decay: 0}\n  groups: [{pattern: '*', weight_decay_multiplier: 2}]", "8:52: "
         "training.groups.0.weight_decay_multiplier: has nothing to multiply: the weight_decay of sgd is 0; give "
         "it, or remove this."),
        ("sgd, momentum: 0.9, weight_decay: 5e-4}", "prodigy}\n  groups: [{pattern: '*.bias', rate_multiplier: 2}]", "8:49: "
         "training.groups.0.rate_multiplier: must be 0 or 1: prodigy takes one rate for all parameters, got 2."),
        # Bounds from elsewhere.
        ("cycles: 2}", "cycles: 2}, max_lr: 20", "15:80: strategies.clr.max_lr: must lie in the study's rates, 1e-05 to "
         "10, got 20."),
        ("cycles: 2}", "cycles: 2}, base_lr: 0.2, max_lr: 0.1", "15:9: strategies.clr: base_lr must be smaller than "
         "max_lr, got 0.2 and 0.1."),
        ("cycles: 2}", "cycles: 2}, max_lr: 0.1, tested_with: {momentum: 0.8}", "15:109: "
         "strategies.clr.tested_with.momentum: the bounds were found with 0.8, but this way has 0.9: test again."),
        ("cycles: 2}", "cycles: 2}, max_lr: 0.1, tested_with: {batch_size: 64}", "15:111: "
         "strategies.clr.tested_with.batch_size: the bounds were found with 64, but this way has 32: test again."),
        ("cycles: 2}", "cycles: 2}, max_lr: 0.1, tested_with: {weight_decay: 0}", "15:113: "
         "strategies.clr.tested_with.weight_decay: the bounds were found with 0.0, but this way has 0.0005: test again."),
        ("cycles: 2}", "cycles: 2}, max_lr: 0.1, tested_with: {momentun: 0}", "15:99: strategies.clr.tested_with.momentun: "
         "unknown key; known: batch_size, momentum, optimizer, weight_decay. Did you mean 'momentum'?"),
        ("cycles: 2}", "cycles: 2}, optimizer: {name: adam}, max_lr: 0.1, tested_with: {momentum: 0.8}", "15:134: "
         "strategies.clr.tested_with.momentum: the bounds were found with 0.8, but this way has 0.9: test again."),
        ("cycles: 2}", "cycles: 2}, optimizer: {name: adam}, max_lr: 0.1, tested_with: {optimizer: sgd}", "15:135: "
         "strategies.clr.tested_with.optimizer: the bounds were found with 'sgd', but this way has 'adam': test again."),
        # Lists that are too short, and home folders that there are not.
        ("sgd, momentum: 0.9", "adam, betas: [0.9]", "7:27: training.optimizer.betas.1: is missing; add it."),
        ("model: mlp", "model: mlp, start_from: ~no.such.user/a.pt", "4:50: workload.start_from: must begin with a home "
         "folder that is known here, got '~no.such.user/a.pt'; write the whole path."),
        ("price:", "checkpoint: {folder: ~no.such.user/a}\nprice:", "11:22: checkpoint.folder: must begin with a home "
         "folder that is known here, got '~no.such.user/a'; write the whole path."),
        # An optimizer of a way's own, and searches for more than the rate.
        ("points: 4", "points: 4, optimizer: {name: adm}", "13:51: strategies.grid.optimizer.name: unknown optimizer 'adm'; "
         "known: adadelta, adagrad, adam, adamw, prodigy, rmsprop, schedulefree_adamw, schedulefree_sgd, sgd. Did you mean "
         "'adam'?"),
        ("points: 4", "points: 4, optimizer: {name: adam, momentum: 0.9}", "13:57: strategies.grid.optimizer.momentum: unknown "
         "key; known: amsgrad, betas, eps, name, weight_decay."),
        ("points: 4", "points: 4, epochs: 0", "13:41: strategies.grid.epochs: must be greater than 0, got 0."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {momentum: {low: 0.9, high: 0.8}}", "13:61: "
         "strategies.grid.search.momentum: low must be smaller than high, got 0.9 and 0.8."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {momentum: {low: 0.9}}", "13:61: "
         "strategies.grid.search.momentum: needs low and high, or choices."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {momentum: {low: 0, high: 1, log: true}}", "13:61: "
         "strategies.grid.search.momentum: log needs a low above 0, got 0."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {momentum: {lo: 0, high: 1}}", "13:62: "
         "strategies.grid.search.momentum.lo: unknown key; known: choices, high, log, low. Did you mean 'low'?"),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {weight_decay: {low: -1, high: 1}}", "13:65: "
         "strategies.grid.search.weight_decay: its end -1: must be greater than or equal to 0, got -1."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {batch_size: {choices: [0, 8]}}", "13:63: "
         "strategies.grid.search.batch_size: its end 0: must be greater than or equal to 1, got 0."),
        ("name: grid, points: 4", "name: random_search, trials: 4, search: {momentun: {low: 0, high: 1}}", "13:61: "
         "strategies.grid.search.momentun: no number of sgd, constant or the workload; known: batch_size, dampening, "
         "momentum, warmup_epochs, weight_decay. Did you mean 'momentum'?"),
        ("name: grid, points: 4", "name: optuna_search, sampler: cmaes, trials: 4, search: {batch_size: {choices: [8, 16]}}",
         "13:9: strategies.grid: cmaes cannot search choices, as batch_size has them; give low and high, or take the sampler "
         "tpe or gp."),
        # The rest.
        ("  epochs: 5", "  epochs: 5\n  precision: half", "7:14: training.precision: must be 'auto', 'float32' or 'bfloat16', "
         "got 'half'."),
        ("  epochs: 5", "  epochs: 5\n  device: gpu", "7:11: training.device: must be auto, cpu, cuda, cuda:N or mps, "
         "got 'gpu'."),
        ("2026-11-23", "2026-13-01", "11:43: price.as_of: must be a date such as 2026-11-23, got '2026-13-01'."),
        ("momentum: 0.9", "nesterov: true", "7:14: training.optimizer: nesterov needs a momentum above 0 and a dampening "
         "of 0."),
        ("momentum: 0.9", "nesterov: 1", "7:36: training.optimizer.nesterov: must be true or false, got 1."),
        ("model: mlp", "model: mpl", "4:33: workload.model: unknown model 'mpl'; known: cifar10_full, cifar10_quick, "
         "lenet, mlp, resnet9, small_cnn, torchvision/<name>. Did you mean 'mlp'?"),
        ("points: 4", "points: 4, learning_rates: [1]", "13:9: strategies.grid: a grid needs exactly one of 'points' and "
         "'learning_rates', got both."),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_its_rule_and_its_value(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in GOOD
    assert mistakes(tmp_path, GOOD.replace(before, after, 1)) == [message]


def test_all_mistakes_of_a_file_are_told_at_once_in_file_order(tmp_path: Path) -> None:
    text = GOOD.replace("points: 4", "points: none, schedulle: 1").replace("[0, 1]", "[0, -1, x, 1.5, 4294967296]")
    text = text.replace("low: 1e-5", "low: !x 1").replace("name: triangular2, ", "name: triangular3, ")
    lines = mistakes(tmp_path, text)
    assert [line.split(" ", 2)[1] for line in lines] == [
        *("seeds.1:", "seeds.2:", "seeds.3:", "seeds.4:", "rates.low:", "strategies.grid.points:"),
        *("strategies.grid.schedulle:", "strategies.clr.schedule.name:"),
    ]


@pytest.mark.parametrize("text", ["- 1\n", "study\n", "~\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    [line] = mistakes(tmp_path, text)
    assert line.startswith("1:1: must be a mapping, got ")


def test_comments_and_the_order_of_keys_do_not_change_the_fingerprint_but_a_value_does(tmp_path: Path) -> None:
    head, strategies = GOOD.split("strategies:")
    lines = head.splitlines()
    swapped = "\n".join([lines[2], lines[1], *lines[7:], *lines[3:7]]) + "\nstrategies:" + strategies
    swapped = swapped.replace("epochs: 5", "epochs: 5.0  # as before")
    same = load(tmp_path, GOOD).fingerprint()
    assert load(tmp_path, swapped).fingerprint() == same
    assert load(tmp_path, GOOD.replace("epochs: 5", "epochs: 6")).fingerprint() != same
    assert load(tmp_path, GOOD.replace("momentum: 0.9", "momentum: 0.9, nesterov: false")).fingerprint() == same


def test_paths_count_from_the_study_file_and_do_not_enter_the_fingerprint(tmp_path: Path) -> None:
    text = GOOD.replace("{name: digits, model: mlp", "{name: cifar10, data_root: images/cifar")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    one, other = load(here, text), load(there, text)
    assert one.workload_choice().settings["data_root"] == str(here / "images/cifar")
    assert other.workload_choice().settings["data_root"] == str(there / "images/cifar")
    assert one.resolved()["workload"]["data_root"] == "images/cifar"
    assert one.fingerprint() == other.fingerprint()
    absolute = load(here, text.replace("images/cifar", "/srv/cifar"))
    assert absolute.workload_choice().settings["data_root"] == "/srv/cifar"
    assert one.on_device("cpu").workload_choice() == one.workload_choice()


def test_another_device_is_another_study(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    moved = config.on_device("cuda:1")
    assert moved.training_plan().device == "cuda:1"
    assert diff(config.resolved(), moved.resolved()) == ['training.device: "auto" -> "cuda:1"']
    with pytest.raises(UsageError, match=r"must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        config.on_device("gpu")


def positive(largest: float = 1e6) -> st.SearchStrategy[float]:
    return st.floats(min_value=1e-12, max_value=largest, allow_subnormal=False)


KEYS = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda key: key[0] not in ".-")
SCHEDULE = st.sampled_from(
    [{"name": "constant"}, {"name": "linear_to_zero"}, {"name": "triangular2", "cycles": 3}, {"name": "one_cycle"}]
)
WAY = st.one_of(
    st.fixed_dictionaries({"name": st.just("grid"), "points": st.integers(2, 99)}, optional={"schedule": SCHEDULE}),
    st.fixed_dictionaries({"name": st.just("random_search"), "trials": st.integers(1, 99), "schedule": SCHEDULE}),
    st.fixed_dictionaries(
        {"name": st.just("range_tested"), "range_epochs": positive()}, optional={"schedule": SCHEDULE}
    ),
    st.fixed_dictionaries({"name": st.just("default_rate")}, optional={"learning_rate": positive()}),
)
OPTIMIZER = st.one_of(
    st.fixed_dictionaries({"name": st.just("sgd")}, optional={"momentum": positive(1), "weight_decay": positive()}),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["adam", "adamw"])},
        optional={"betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2), "amsgrad": st.booleans()},
    ),
    st.fixed_dictionaries({"name": st.sampled_from(["rmsprop", "adagrad"])}, optional={"eps": positive()}),
)
FILE = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "name": KEYS,
        "workload": st.fixed_dictionaries({"name": st.just("digits")}, optional={"batch_size": st.integers(1, 4096)}),
        "training": st.fixed_dictionaries(
            {"epochs": st.one_of(st.integers(1, 500), positive()), "optimizer": OPTIMIZER},
            optional={
                "precision": st.sampled_from(["float32", "bfloat16"]),
                "gradient_clip_norm": st.one_of(st.none(), positive()),
                "device": st.sampled_from(["auto", "cpu", "cuda:3"]),
            },
        ),
        "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5, unique=True),
        "rates": positive(1e3).map(lambda low: {"low": low, "high": low * 10}),
        "strategies": st.dictionaries(KEYS, WAY, min_size=1, max_size=4),
    },
    optional={
        "target": st.fixed_dictionaries({"metric": st.just("accuracy"), "value": st.floats(-1e9, 1e9)}),
        "price": st.fixed_dictionaries({"usd_per_device_hour": positive(), "as_of": st.dates().map(str)}),
    },
)


def shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key], chance) for key in chance.sample(list(value), len(value))}
    return value


@settings(max_examples=60, deadline=None)
@given(FILE, st.randoms(use_true_random=False))
def test_a_resolved_study_comes_back_as_it_was_stored(file: dict[str, Any], chance: random.Random) -> None:
    config = from_resolved(file)
    stored = json.loads(json.dumps(config.resolved(), allow_nan=False))
    again = from_resolved(stored)
    assert again.resolved() == config.resolved() == stored
    assert again.training_plan() == config.training_plan()
    assert from_resolved(shuffled(stored, chance)).fingerprint() == config.fingerprint()
    assert list(again.strategies) == list(file["strategies"])
    assert diff(stored, again.resolved()) == []


def test_a_stored_study_that_this_version_cannot_read_is_refused() -> None:
    config = make_config()
    config["strategies"]["grid"]["name"] = "from_a_plug_in_that_is_gone"
    with pytest.raises(UsageError, match=r"strategies\.grid\.name: unknown strategy 'from_a_plug_in_that_is_gone'"):
        from_resolved(config)


def test_a_difference_names_the_key_and_both_values() -> None:
    old = from_resolved(make_config()).resolved()
    new = json.loads(json.dumps(old))
    new["training"]["epochs"] = 20.0
    new["seeds"] = [0, 1]
    new["target"] = None
    new["strategies"]["grid"]["schedule"]["name"] = "cosine"
    new["strategies"]["more"] = {"name": "default_rate"}
    del new["strategies"]["tpe"]
    assert [line for line in diff(old, new) if not line.startswith("strategies.tpe")] == [
        "training.epochs: 15 -> 20",
        "seeds: [0, 1, 2, 3, 4] -> [0, 1]",
        'target: {"metric": "accuracy", "value": 0.95} -> null',
        'strategies.grid.schedule.name: "constant" -> "cosine"',
        'strategies.more: added, {"name": "default_rate"}',
    ]
    assert any(line.startswith("strategies.tpe: removed, was {") for line in diff(old, new))


@pytest.mark.parametrize(
    ("path", "value", "extends"),
    [
        (("seeds",), [0, 1, 2, 3, 4, 5], True),
        (("seeds",), [5, 4, 3, 2, 1, 0], True),
        (("seeds",), [0, 1, 2, 3], False),
        (("strategies", "random", "trials"), 9, True),
        (("strategies", "random", "trials"), 7, False),
        (("strategies", "tpe", "trials"), 32, True),
        (("strategies", "tpe", "sampler"), "gp", False),
        (("strategies", "grid", "points"), 9, False),
        (("strategies", "more"), {"name": "default_rate"}, True),
        (("training", "epochs"), 30.0, False),
        (("target",), None, False),
        (("rates", "high"), 1.0, False),
    ],
)
def test_more_seeds_trials_and_strategies_extend_a_study_and_nothing_else_does(
    path: tuple[str, ...], value: Any, extends: bool
) -> None:
    old = from_resolved(make_config()).resolved()
    new = json.loads(json.dumps(old))
    block = new
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    assert is_extension(old, new) is extends
    assert is_extension(old, old)


def test_a_study_without_one_of_its_strategies_is_no_extension() -> None:
    old = from_resolved(make_config()).resolved()
    assert not is_extension(old, {**old, "strategies": {"grid": old["strategies"]["grid"]}})


def choices(schema: dict[str, Any], node: dict[str, Any]) -> list[str]:
    alternatives = [schema["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in node["oneOf"]]
    assert all("name" in one["required"] and one["additionalProperties"] is False for one in alternatives)
    return [one["properties"]["name"]["const"] for one in alternatives]


def test_the_schema_offers_every_registered_name_and_its_settings() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert choices(schema, schema["properties"]["workload"]) == names("workload", WORKLOADS)
    assert choices(schema, schema["$defs"]["Training"]["properties"]["optimizer"]) == sorted(OPTIMIZERS)
    [way] = schema["properties"]["strategies"]["patternProperties"].values()
    assert choices(schema, way) == names("strategy", STRATEGIES)
    grid = next(one for one in way["oneOf"] if one["properties"]["name"]["const"] == "grid")
    assert choices(schema, grid["properties"]["schedule"]) == names("schedule", SCHEDULES)
    assert grid["properties"]["points"]["anyOf"][0] == {"minimum": 2, "maximum": 100_000, "type": "integer"}


PLUG_IN = """
from typing import Literal
from lrsearch.interfaces import Settings
from lrsearch.strategies import ScheduleTemplate

class Guess(Settings):
    name: Literal["guess"] = "guess"
    rate: float
    schedule: ScheduleTemplate = ScheduleTemplate(name="cosine")

    @property
    def planned_trials(self) -> int:
        if self.rate == 14:
            raise ValueError("a library's own words") from KeyboardInterrupt()
        return 1 // (self.rate != 13)

    def propose(self, history, max_count):
        return []
"""


def install_plug_in(folder: Path) -> Path:
    """Install a strategy `guess`, whose plan fails at rate 13 and is interrupted at 14, as pip would; return the folder for PYTHONPATH."""
    (folder / "guessing.py").write_text(PLUG_IN)
    metadata = folder / "guessing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guessing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lrsearch.strategy]\nguess = guessing:Guess\nbroken = nothing_here:X\n")
    return folder


def test_a_plug_in_is_checked_like_a_strategy_of_our_own(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "study.yaml").write_text(
        GOOD
        + "  mine: {name: guess, rat: 1}\n  bad: {name: broken}\n  far: {name: guess, rate: x, schedule: {name: a}}\n"
    )
    answer = subprocess.run(
        [sys.executable, "-m", "lrsearch", "validate", "study.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(install_plug_in(site))},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    lines = answer.stderr.splitlines()
    assert lines[0] == (
        "study.yaml:16:23: strategies.mine.rat: unknown key; known: name, rate, schedule. Did you mean 'rate'?"
    )
    assert lines[1].startswith(
        "study.yaml:17:15: strategies.bad.name: the strategy plug-in 'broken' (nothing_here:X) does"
    )
    assert lines[2] == "study.yaml:18:28: strategies.far.rate: must be a number, got 'x'."
    assert lines[3].startswith(
        "study.yaml:18:48: strategies.far.schedule.name: unknown schedule 'a'; known: constant, "
    )


OWN = "{name: callable, model: my.nets:net, data: my.tables:rows"


@pytest.mark.parametrize(
    ("workload", "measured"),
    [
        ("{name: digits}", "accuracy"),
        ("{name: diabetes}", "r2"),
        ("{name: text}", "perplexity"),
        ("{name: multi_label_images, data_root: there}", "micro_f1"),
        (f"{OWN}}}", "accuracy"),
        (f"{OWN}, metric: my.scores:mean_error}}", "mean_error"),
        (f"{OWN}, metric: my.scores:Scores.trimmed}}", "trimmed"),
        (f"{OWN}, metric: my.scores:mean_error, metric_name: error}}", "error"),
    ],
)
def test_a_target_of_another_metric_than_the_workloads_is_refused_where_it_stands(
    tmp_path: Path, workload: str, measured: str
) -> None:
    text = GOOD.replace("{name: digits, model: mlp, batch_size: 32}", workload)
    [mistake] = mistakes(tmp_path, text.replace("metric: accuracy", "metric: loss"))
    assert mistake == f"10:18: target.metric: must be {measured!r}, which the workload measures, got 'loss'."
    assert load(tmp_path, text.replace("metric: accuracy", f"metric: {measured}")).target is not None
