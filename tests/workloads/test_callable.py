from __future__ import annotations

import importlib
import itertools
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import f1_score, mean_absolute_error

from lrsearch import training
from lrsearch.errors import WorkloadError
from lrsearch.interfaces import LoadedWorkload
from lrsearch.training import Run, new_run, own_generators, prepare
from lrsearch.trial import Choice, Reading, TrainingPlan
from lrsearch.workloads import _user_data
from lrsearch.workloads._examples import LoadedExamples
from lrsearch.workloads.callable import CallableWorkload
from lrsearch.workloads.user_code import resolve
from tests.clock import Clock
from tests.workloads.contract import CPU, ClassificationContract, WorkloadContract, epoch, load, rows, whole

TABLE = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

def table(rows=200, features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 1).long()

def data():
    return {"train": table(), "test": table(50, seed=1)}

def model():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

class Rows(Dataset):
    def __init__(self, rows, seed):
        self.inputs, self.targets = table(rows, seed=seed)
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        return self.inputs[index].numpy().astype("float64"), int(self.targets[index])
"""
Make = Callable[..., CallableWorkload]
numbers = itertools.count()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the user's module (TABLE, then `source`) and return the workload that uses it."""

    def make(source: str = "", **settings: Any) -> CallableWorkload:
        name = f"user_code_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(TABLE + source)
        given = {"model": "model", "data": "data", "batch_size": 16, "python_path": tmp_path, **settings}
        roles = ("model", "data", "loss", "metric")
        own = {role: f"{name}:{given[role]}" for role in roles if role in given and ":" not in given[role]}
        return CallableWorkload(**{**given, **own})

    return make


def error_of(workload: CallableWorkload) -> str:
    with pytest.raises(WorkloadError) as caught:
        load(workload)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestTable(ClassificationContract):
    @pytest.fixture
    def workload(self, make: Make) -> CallableWorkload:
        return make()

    def test_inputs_are_taken_as_they_are(self, workload: CallableWorkload) -> None:
        inputs, targets = whole(load(workload), "test")
        expected = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
        assert torch.equal(inputs, expected)
        assert torch.equal(targets, (expected[:, 0] > 0).long() + (expected[:, 1] > 1).long())

    def test_the_report_names_the_users_functions(self, workload: CallableWorkload) -> None:
        description = load(workload).facts.description
        assert description == f"{workload.data}, 200 examples of shape 5, model {workload.model}"


class TestDataset(ClassificationContract):
    """Items of numpy float64 and Python whole numbers, as a Dataset over a table file would give them."""

    @pytest.fixture
    def workload(self, make: Make) -> CallableWorkload:
        return make("def own():\n    return Rows(200, 0), Rows(50, 1)", data="own")

    def test_it_gives_the_same_examples_as_its_tensors(self, workload: CallableWorkload, make: Make) -> None:
        for ours, tensors in zip(whole(load(workload), "test"), whole(load(make()), "test"), strict=True):
            assert torch.equal(ours, tensors)
        for ours, tensors in zip(whole(load(workload), "validation"), whole(load(make()), "validation"), strict=True):
            assert torch.equal(ours, tensors)


class TestDatasetTooLargeToKeep(TestDataset):
    """Read item by item in each epoch."""

    @pytest.fixture(autouse=True)
    def nothing_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_user_data, "KEPT_BYTES", 0)


COUNTED = """
class Counted(Rows):
    reads = 0
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dice = np.random.default_rng(0)
    def __getitem__(self, index):
        type(self).reads += 1
        return {item}
def own():
    return {train}, {test}
"""
SAME = "self.inputs[index], int(self.targets[index])"
NOISY = {
    "torch": "self.inputs[index] + 1e-3 * torch.randn(5), int(self.targets[index])",
    "a draw that is not used": "(torch.rand(1), self.inputs[index])[1], int(self.targets[index])",
    "a draw of its own that is not used": "(self.dice.random(), self.inputs[index])[1], int(self.targets[index])",
    "other targets": "self.inputs[index], type(self).reads * 7 // 3 % 2",
}


@pytest.mark.parametrize("test", ["Counted(50, 1)", "DataLoader(Counted(50, 1), 16, num_workers=0)"])
def test_a_dataset_that_is_the_same_each_time_is_read_twice_and_never_again(make: Make, test: str) -> None:
    workload = make(COUNTED.format(item=SAME, train="Counted(200, 0)", test=test), data="own")
    loaded, counted = load(workload), resolve("data", workload.data, workload.python_path).__globals__["Counted"]
    assert counted.reads == 2 * (200 + 50)
    assert len(epoch(loaded)) == 200 * 4 // 5 // 16
    assert len(whole(loaded, "test")[0]) == 50
    assert counted.reads == 2 * (200 + 50)
    assert isinstance(loaded, LoadedExamples)
    assert not loaded.reads_examples


@pytest.mark.parametrize("noise", NOISY)
def test_a_dataset_that_may_be_another_each_time_is_read_each_time(make: Make, noise: str) -> None:
    source = COUNTED.format(item=NOISY[noise], train="Counted(200, 0)", test="Counted(50, 1)")
    workload = make(source, data="own", validation_fraction=0.5)
    loaded, counted = load(workload), resolve("data", workload.data, workload.python_path).__globals__["Counted"]
    before = counted.reads
    whole(loaded, "test")
    assert counted.reads == before + 50
    assert isinstance(loaded, LoadedExamples)
    assert loaded.reads_examples


@pytest.mark.parametrize("noise", ["torch.randn(5)", "torch.from_numpy(self.dice.normal(size=5)).float()"])
def test_what_workers_add_by_chance_is_seen(make: Make, noise: str) -> None:
    item = f"self.inputs[index] + {noise}, int(self.targets[index])"
    source = COUNTED.format(item=item, train="Rows(200, 0)", test="DataLoader(Counted(50, 1), 16, num_workers=1)")
    loaded = load(make(source, data="own"))
    assert isinstance(loaded, LoadedExamples)
    assert isinstance(loaded._splits.test, _user_data.DatasetPart)
    assert isinstance(loaded._splits.train, _user_data.TensorPart)


def test_inputs_whose_shape_changes_between_batches_are_read_each_time() -> None:
    class Growing(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(5 if index < _user_data.SCAN_ROWS else 6), index % 2

    part = _user_data._examples(Growing(), "workload.data, test", torch.device("cpu"))
    assert [inputs.shape[1] for inputs, _ in part.in_order(64, torch.device("cpu"))] == [5, 5, 5, 5, 6]


@pytest.mark.skipif(sys.platform != "linux", reason="it counts open files as Linux tells them")
def test_what_workers_have_read_holds_no_file_open(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_user_data, "SCAN_ROWS", 1)
    loader = "DataLoader(Rows(1000, 1), 16, num_workers=1)"
    workload = make(f"def own():\n    return Rows(200, 0), {loader}", data="own")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        inputs, _ = whole(load(workload), "test")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(inputs) == 1000


class TestNumpyTuple(ClassificationContract):
    @pytest.fixture
    def workload(self, make: Make) -> CallableWorkload:
        source = """
def own():
    (inputs, targets), (test_inputs, test_targets) = table(), table(50, seed=1)
    train = inputs.double().numpy(), targets.numpy().astype(np.int32)
    return train, [test_inputs.double().numpy(), test_targets.numpy().astype(np.int32)]
"""
        return make(source, data="own")


class TestSequences(ClassificationContract):
    @pytest.fixture
    def workload(self, make: Make) -> CallableWorkload:
        source = """
def sequences(rows, seed):
    tokens = torch.randint(9, (rows, 12), generator=torch.Generator().manual_seed(seed))
    return tokens, tokens[:, 0] % 2

def own():
    return sequences(200, 0), sequences(50, 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read, self.answer = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)
    def forward(self, tokens):
        return self.answer(self.read(self.embed(tokens))[0][:, -1])
"""
        return make(source, data="own", model="Net")


class TestRegression(WorkloadContract):
    @pytest.fixture
    def workload(self, make: Make) -> CallableWorkload:
        source = """
from sklearn.metrics import mean_absolute_error

def own():
    inputs, test_inputs = table()[0], table(50, seed=1)[0]
    return (inputs, inputs.sum(1, keepdim=True)), (test_inputs, test_inputs.sum(1, keepdim=True))

def line():
    return nn.Linear(5, 1)
"""
        return make(
            source,
            data="own",
            model="line",
            loss="torch.nn.functional:mse_loss",
            metric="mean_absolute_error",
            higher_is_better=False,
            chance=1.8,
        )

    def test_every_split_has_each_class_in_its_share(self, workload: Any) -> None:
        facts = load(workload).facts
        assert (facts.train_count, facts.validation_count) == (160, 40)

    def test_loss_and_metric_are_the_users(self, workload: CallableWorkload) -> None:
        loaded = load(workload)
        outputs, targets = torch.randn(20, 1), torch.randn(20, 1)
        assert loaded.loss(outputs, targets).item() == pytest.approx((outputs - targets).square().mean().item())
        assert loaded.metric(outputs, targets) == pytest.approx(mean_absolute_error(targets, outputs))
        facts = loaded.facts
        assert (facts.metric, facts.higher_is_better, facts.chance) == ("mean_absolute_error", False, 1.8)
        assert facts.class_count is None

    def test_outputs_of_a_diverged_model_do_not_reach_the_metric(self, workload: CallableWorkload) -> None:
        """scikit-learn would raise on them."""
        assert np.isnan(load(workload).metric(torch.full((3, 1), torch.nan), torch.zeros(3, 1)))


LOADERS = """
def own(**options):
    loader = DataLoader(Rows(200, 0), batch_size=16, shuffle=True, **options)
    return loader, DataLoader(Rows(60, 2), batch_size=7, shuffle=True, drop_last=True), DataLoader(Rows(50, 1))
"""


def test_a_training_loader_gives_its_own_batches_in_an_order_that_the_generator_decides(make: Make) -> None:
    loaded = load(make(LOADERS, data="own"))
    assert loaded.facts.steps_per_epoch == 13  # drop_last is the loader's own decision
    first, again, other = epoch(loaded, 0), epoch(loaded, 0), epoch(loaded, 1)
    assert [len(targets) for _, targets in first] == [16] * 12 + [8]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert loaded.facts.train_count == 200


def test_the_loaders_of_validation_and_test_are_read_whole_and_in_order(make: Make) -> None:
    loaded = load(make(LOADERS, data="own"))
    assert loaded.facts.validation_count == 60
    assert loaded.facts.test_count == 50
    inputs, _ = whole(loaded, "validation")
    assert torch.equal(inputs, torch.randn(60, 5, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(whole(loaded, "range_test")[0], inputs)


def test_a_given_validation_part_is_the_same_for_every_seed(make: Make) -> None:
    workload = make(LOADERS, data="own")
    assert torch.equal(whole(load(workload, 0), "validation")[0], whole(load(workload, 1), "validation")[0])


def test_a_sampler_that_leaves_examples_out_is_respected(make: Make) -> None:
    source = """
def own():
    rows = Rows(200, 0)
    train = DataLoader(rows, batch_size=16, sampler=SubsetRandomSampler(range(100)))
    validation = DataLoader(rows, batch_size=16, sampler=SubsetRandomSampler(range(100, 200)))
    return train, validation, Rows(50, 1)
"""
    loaded = load(make(source, data="own"))
    assert loaded.facts.train_count == loaded.facts.validation_count == 100
    train = torch.cat([inputs for inputs, _ in epoch(loaded)])
    validation = whole(loaded, "validation")[0]
    assert not {tuple(row.tolist()) for row in train} & {tuple(row.tolist()) for row in validation}


def test_inputs_of_several_tensors_and_of_several_lengths_work_through_a_dataset(make: Make) -> None:
    source = """
class Pairs(Rows):
    def __getitem__(self, index):
        return {"a": self.inputs[index], "b": torch.ones(index % 3 + 1)}, self.targets[index]

def collate(items):
    b = nn.utils.rnn.pad_sequence([item["b"] for item, _ in items], batch_first=True)
    return {"a": torch.stack([item["a"] for item, _ in items]), "b": b}, torch.stack([target for _, target in items])

def own():
    parts = {"train": Pairs(96, 0), "validation": Pairs(30, 1), "test": Pairs(30, 2)}
    return {name: DataLoader(part, batch_size=16, collate_fn=collate) for name, part in parts.items()}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(6, 3)
    def forward(self, inputs):
        return self.line(torch.cat([inputs["a"], inputs["b"].sum(1, keepdim=True)], 1))
"""
    loaded = load(make(source, data="own", model="Net"))
    inputs: Any = epoch(loaded)[0][0]
    assert inputs["a"].shape == (16, 5)
    assert loaded.facts.input_shape == ()
    batches = list(loaded.evaluation_batches("test"))
    assert sum(len(targets) for _, targets in batches) == 30


def test_a_target_per_position_works_with_the_defaults(make: Make) -> None:
    source = """
def own():
    inputs = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0))
    return (inputs, inputs.argmax(1)), (inputs[:9], inputs[:9].argmax(1))

def net():
    return nn.Conv1d(3, 3, 1)
"""
    loaded = load(make(source, data="own", model="net"))
    inputs, targets = whole(loaded, "test")
    assert loaded.metric(inputs, targets) == 1.0
    assert loaded.facts.class_count == 3


def test_chance_inside_the_data_function_is_the_same_in_every_process(make: Make) -> None:
    source = """
import random

def own():
    inputs = torch.cat([torch.randn(99, 3), torch.from_numpy(np.random.rand(99, 2))], 1) + random.random()
    return (inputs, torch.randint(2, (99,))), (inputs, torch.randint(2, (99,)))
"""
    torch.manual_seed(1)
    first = whole(load(make(source, data="own")), "test")
    torch.manual_seed(2)
    second = whole(load(make(source, data="own")), "test")
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_chance_where_a_module_is_imported_is_the_same_in_every_process(make: Make) -> None:
    source = "INPUTS = np.random.rand(99, 5)\ndef own():\n    return [(INPUTS, (INPUTS[:, 0] > 0.5).astype(int))] * 2\n"
    np.random.seed(1)
    first = whole(load(make(source, data="own")), "test")[0]
    np.random.seed(2)
    assert torch.equal(first, whole(load(make(source, data="own")), "test")[0])


def test_data_are_made_once_and_a_model_for_every_trial(make: Make) -> None:
    source = """
calls = []

def own():
    calls.append("data")
    return data()

def net():
    calls.append("model")
    return model()
"""
    workload = make(source, data="own", model="net")
    load(workload)
    calls = importlib.import_module(workload.data.split(":")[0]).calls
    models = calls.count("model")
    for seed in range(3):
        load(workload, seed).build_model()
    assert calls.count("data") == 1
    assert calls.count("model") == models + 3


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_loss_that_is_no_number_from_the_start_is_told_before_any_trial(make: Make, number: str) -> None:
    source = f"def no_number(outputs, targets):\n    return outputs.square().sum() * float('{number}')\n"
    settings = make(source, loss="no_number").model_dump(exclude_none=True, exclude={"name"})
    with pytest.raises(WorkloadError, match=f"must be a number, got {number} before any weight has changed"):
        prepare(Choice("callable", settings), TrainingPlan(1.0, Choice("sgd", {}), device="cpu"), 0)


def test_a_python_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    workload = CallableWorkload(model="any:model", data="any:data", python_path=tmp_path / "nowhere")
    with pytest.raises(WorkloadError, match=r"workload\.python_path must be a folder"):
        workload.load(torch.device("cpu"), 0)


def test_modules_of_the_current_directory_are_found(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make()
    monkeypatch.chdir(tmp_path)
    assert load(workload, python_path=None).facts.train_count == 160


NOT_RIGHT: dict[str, tuple[str, dict[str, str], str]] = {
    "no such module": (
        "",
        {"data": "no_such_module:data"},
        r"no module 'no_such_module' in .* set workload.python_path",
    ),
    "a file for a module": (
        "",
        {"data": "mine.py:data"},
        r"no module 'mine.py': name the module without its .py, as 'mine:data'",
    ),
    "misspelt function": ("", {"data": "dta"}, r"has no 'dta'; it has .*Did you mean 'data'\?"),
    "not a function": ("nets = 3", {"model": "nets"}, r"must be a function, got an int"),
    "a model": (
        "net = torch.nn.Linear(5, 3)",
        {"model": "net"},
        r"must be a function that returns a new model, got a model \(Linear\): build it inside a function",
    ),
    "the class of a loss": (
        "from torch.nn import CrossEntropyLoss",
        {"loss": "CrossEntropyLoss"},
        r"workload.loss .* must be a function of \(outputs, targets\), got a class: .* `loss = CrossEntropyLoss\(",
    ),
    "the class of a metric": (
        "class Score(nn.Module):\n    def forward(self, outputs, targets):\n        return 1.0",
        {"metric": "Score"},
        r"workload.metric .* must be a function of \(outputs, targets\), got a class: .* `metric = Score\(",
    ),
    "data raises": ("def own():\n    return 1 / 0", {"data": "own"}, r"ZeroDivisionError: .*\.py:\d+, in own\)"),
    "data exits": ("def own():\n    raise SystemExit(3)", {"data": "own"}, r"raised SystemExit: 3 .*in own\)"),
    "data in numpy": (
        "def own():\n    return np.zeros(3).reshape(2, 2)",
        {"data": "own"},
        r"ValueError: cannot reshape .*user_code_\d+\.py:\d+, in own\)",
    ),
    "data are arrays": (
        "def own():\n    return table()[0]",
        {"data": "own"},
        r'must return \{"train": \.\.\., "test": \.\.\.\}.*got a Tensor',
    ),
    "data as of train_test_split": (
        "def own():\n    return table()[0], table(50)[0], table()[1], table(50)[1]",
        {"data": "own"},
        r"\(train, test\) or .*; got a tuple of 4",
    ),
    "data without test": (
        "def own():\n    return {'train': table()}",
        {"data": "own"},
        r"got a dict with the keys \['train'\]",
    ),
    "parts are inputs and targets": (
        "def own():\n    return table()",
        {"data": "own"},
        r"train must be \(inputs, targets\), a Dataset or a DataLoader; got a Tensor",
    ),
    "text for inputs": (
        "def own():\n    return (np.array(['a', 'b']), [0, 1]), table()",
        {"data": "own"},
        r"train: inputs must be a tensor or an array of numbers, got a ndarray",
    ),
    "NaN inputs": (
        "def own():\n    inputs, targets = table()\n    inputs[17, 2] = torch.nan\n    inputs[30, 0] = torch.inf\n"
        "    return (inputs, targets), table(50)",
        {"data": "own"},
        r"train: inputs must be finite, but row 17 is the first that holds NaN or infinity",
    ),
    "masked inputs": (
        "def own():\n    inputs, targets = table()\n"
        "    return (np.ma.masked_greater(inputs.numpy(), 2.0), targets), table(50)",
        {"data": "own"},
        r"train: inputs must be there, but \d+ values are masked: fill or drop them",
    ),
    "inputs without a device": (
        "def own():\n    return (table()[0].to('meta'), table()[1]), table(50)",
        {"data": "own"},
        r"train: inputs: looking at them raised RuntimeError: ",
    ),
    "no columns": (
        "def own():\n    return (torch.zeros(200, 0), table()[1]), table(50)",
        {"data": "own"},
        r"train: inputs must have one row per example, got shape \(200, 0\)",
    ),
    "NaN in a Dataset": (
        "def own():\n    rows = Rows(600, 0)\n    rows.inputs[300, 2] = torch.nan\n    return rows, Rows(50, 1)",
        {"data": "own"},
        r"train: inputs must be finite, but row 300 is the first that holds",
    ),
    "one class": (
        "def own():\n    return (table()[0], torch.ones(200, dtype=torch.long)), table()",
        {"data": "own"},
        r"train: all 200 targets are class 1: a classifier needs two classes",
    ),
    "lengths differ": (
        "def own():\n    return (table()[0], table(199)[1]), table()",
        {"data": "own"},
        r"train: there are 200 inputs but 199 targets",
    ),
    "sparse inputs": (
        "def own():\n    return (table()[0].to_sparse(), table()[1]), table()",
        {"data": "own"},
        r"train: inputs must be dense, got a tensor of layout torch.sparse_coo: use .to_dense\(\)",
    ),
    "no rows": (
        "def own():\n    return table(), (torch.zeros(0, 5), torch.zeros(0))",
        {"data": "own"},
        r"test: inputs must have one row per example, got shape \(0, 5\)",
    ),
    "shapes differ": (
        "def own():\n    return table(), table(50, features=6)",
        {"data": "own"},
        r"test: one input has shape \(6,\), but \(5,\) in train",
    ),
    "target types differ": (
        "def own():\n    return table(), (table()[0], table()[1].float())",
        {"data": "own"},
        r"test: targets are torch.float32 .* but torch.int64",
    ),
    "float targets with cross-entropy": (
        "def own():\n    return (table()[0], table()[1].float()), (table()[0], table()[1].float())",
        {"data": "own"},
        r"default loss cross-entropy needs class ids .*got torch.float32: .*workload.loss and workload.metric",
    ),
    "own loss but default metric": (
        "def own():\n    return (table()[0], table()[0][:, :1]), (table()[0], table()[0][:, :1])",
        {"data": "own", "loss": "torch.nn.functional:mse_loss"},
        r"default metric accuracy needs class ids .*got torch.float32: .*give workload.metric",
    ),
    "negative class id": (
        "def own():\n    return (table()[0], table()[1] - 1), table()",
        {"data": "own"},
        r"class ids must be 0 or more, got -1",
    ),
    "class ids as a column": (
        "def own():\n    return (table()[0], table()[1][:, None]), (table()[0], table()[1][:, None])",
        {"data": "own"},
        r"class ids must have shape \(rows,\), got \(200, 1\): use .squeeze\(1\)",
    ),
    "too few outputs": (
        "def net():\n    return nn.Linear(5, 2)",
        {"model": "net"},
        r"^workload.model .* returns 2 values per row, but the targets hold class ids up to 2: "
        r"give its last layer 3 outputs",
    ),
    "classes from 1": (
        "def own():\n    return (table()[0], table()[1] + 1), table()",
        {"data": "own"},
        r"give its last layer 4 outputs, number classes from 0, or give workload.loss and workload.metric for other",
    ),
    "one output, own loss and no metric": (
        "def net():\n    return nn.Linear(5, 1)\ndef loss(outputs, targets):\n    return outputs.mean()",
        {"model": "net", "loss": "loss"},
        r"number classes from 0, or give workload.metric for other outputs",
    ),
    "one-hot targets": (
        "def own():\n    return 2 * ((table()[0], nn.functional.one_hot(table()[1])),)",
        {"data": "own"},
        r"rows with targets of shape \(16, 3\), got \(16, 3\): give class ids, not one-hot rows",
    ),
    "targets of several tensors": (
        "class Twice(Rows):\n    def __getitem__(self, index):\n        return self.inputs[index], {'a': 1, 'b': 2}\n"
        "def own():\n    return Twice(20, 0), Twice(20, 0)",
        {"data": "own"},
        r"targets must be a tensor or an array of numbers, got a dict: .*inputs alone may be several tensors",
    ),
    "outputs of the wrong shape": (
        "def net():\n    return nn.Sequential(nn.Linear(5, 3), nn.Flatten(0))",
        {"model": "net"},
        r"^workload.model .* must return \(16, classes\) for 16 rows, got \(48,\)",
    ),
    "one number for each row": (
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(5, 1)\n"
        "    def forward(self, inputs):\n        return super().forward(inputs).squeeze(1)",
        {"model": "Net"},
        r"got \(16,\): give one value per class, or workload.loss and workload.metric for other outputs",
    ),
    "outputs are no tensor": (
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(5, 3)\n"
        "    def forward(self, inputs):\n        return {'logits': super().forward(inputs)}",
        {"model": "Net"},
        r"must return a tensor of \(rows, classes\), got a dict",
    ),
    "model takes other inputs": (
        "def net():\n    return nn.Linear(6, 3)",
        {"model": "net"},
        r"^workload.model '.*:net': Linear on inputs of shape \(16, 5\) raised RuntimeError: .*mat1 and mat2 shapes",
    ),
    "model raises": (
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(5, 3)\n"
        "    def forward(self, inputs):\n        raise KeyError('no forward today')",
        {"model": "Net"},
        r"workload.model .*: Net .*raised KeyError: 'no forward today' \(.*user_code_\d+.py:\d+, in forward\)",
    ),
    "model is none": ("def net():\n    model()", {"model": "net"}, r"must return a torch.nn.Module, got a NoneType"),
    "model needs arguments": (
        "def net(width):\n    return nn.Linear(5, width)",
        {"model": "net"},
        r"raised TypeError: net\(\) missing 1 required positional argument: 'width'",
    ),
    "the same model every time": (
        "one = model()\ndef net():\n    return one",
        {"model": "net"},
        r"returns the same parameters at each call, so trials would train on top of each other",
    ),
    "nothing to train": (
        "def net():\n    return nn.Flatten()",
        {"model": "net"},
        r"must return a model with parameters that require gradients",
    ),
    "loss is a number": (
        "def loss(outputs, targets):\n    return nn.functional.cross_entropy(outputs, targets).item()",
        {"loss": "loss"},
        r"must return a scalar tensor to differentiate, got a float",
    ),
    "loss with parameters": (
        "class Scaled(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.scale = nn.Parameter(torch.ones(3))\n"
        "    def forward(self, outputs, targets):\n"
        "        return nn.functional.cross_entropy(outputs * self.scale, targets)\n"
        "scaled = Scaled()",
        {"loss": "scaled"},
        r"has parameters of its own, which no optimizer would train: make them a part of the model",
    ),
    "a loader of evaluation data with batches of its own": (
        "class Doubled(DataLoader):\n    def __iter__(self):\n"
        "        return ((2 * inputs, targets) for inputs, targets in super().__iter__())\n"
        "def own():\n    return Rows(200, 0), Doubled(Rows(50, 1), 16)",
        {"data": "own"},
        r"test: Doubled has batches of its own \(__iter__\), which would be passed over .*collate_fn",
    ),
    "several rows for an example": (
        "def twice(items):\n    inputs, targets = torch.utils.data.default_collate(items)\n"
        "    return inputs.repeat(2, 1), targets.repeat(2)\n"
        "def own():\n    return Rows(200, 0), DataLoader(Rows(50, 1), 16, collate_fn=twice)",
        {"data": "own"},
        r"test: there are 100 targets of 50 examples: give one for each",
    ),
    "outputs are no tensor, with loss and metric that take that": (
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(5, 3)\n"
        "    def forward(self, inputs):\n        return {'logits': super().forward(inputs)}\n"
        "def loss(outputs, targets):\n    return outputs['logits'].mean()\n"
        "def metric(outputs, targets):\n    return float(outputs['logits'].mean())",
        {"model": "Net", "loss": "loss", "metric": "metric"},
        r"must return one tensor when it is evaluated, .*got a dict: return what they need of it, side by side",
    ),
    "a batch norm that models share": (
        "norm = nn.BatchNorm1d(5, affine=False)\ndef net():\n    return nn.Sequential(norm, nn.Linear(5, 3))",
        {"model": "net"},
        r"returns a batch norm that all models share, .*copy.deepcopy",
    ),
    "loss per row": (
        "def loss(outputs, targets):\n    return nn.functional.cross_entropy(outputs, targets, reduction='none')",
        {"loss": "loss"},
        r"must return a scalar tensor to differentiate, got shape \(16,\)",
    ),
    "loss cut from its graph": (
        "def loss(outputs, targets):\n    return nn.functional.cross_entropy(outputs, targets).detach()",
        {"loss": "loss"},
        r"must return a scalar tensor to differentiate, got one without a gradient",
    ),
    "a loss that compares each output with every target": (
        "def column():\n    return nn.Linear(5, 1)\n"
        "def loss(outputs, targets):\n    return (outputs - targets).square().mean()\n"
        "def metric(outputs, targets):\n    return float((outputs[:, 0] - targets).abs().mean())",
        {"model": "column", "loss": "loss", "metric": "metric"},
        r"workload.loss '.*' compares each output with every target: .* returns \(16, 1\), targets have \(16,\), "
        r"which torch broadcasts to \(16, 16\). Give both one shape",
    ),
    "a loss that compares each output with every target, and a metric that refuses these shapes": (
        "def column():\n    return nn.Linear(5, 1)",
        {"model": "column", "loss": "torch.nn.functional:mse_loss", "metric": "torchmetrics.functional:r2_score"},
        r"^workload.loss '.*' compares each output with every target: .* Give both one shape",
    ),
    "a metric that compares each output with every target": (
        "def column():\n    return nn.Linear(5, 1)\n"
        "def loss(outputs, targets):\n    return (outputs[:, 0] - targets).square().mean()\n"
        "def metric(outputs, targets):\n    return float((outputs - targets).abs().mean())",
        {"model": "column", "loss": "loss", "metric": "metric"},
        r"workload.metric '.*' compares each output with every target",
    ),
    "metric is no number": (
        "def metric(outputs, targets):\n    return 'good'",
        {"metric": "metric"},
        r"workload.metric '.*' must return a number, but raised ValueError: could not convert",
    ),
    "training loader alone": (
        "def own():\n    return DataLoader(Rows(200, 0), batch_size=16), Rows(50, 1)",
        {"data": "own"},
        r"a training DataLoader cannot be split, so a validation part must stand beside it",
    ),
    "another batch size": (
        "def own():\n    return DataLoader(Rows(200, 0), batch_size=8), Rows(50, 1), Rows(50, 2)",
        {"data": "own"},
        r"workload.batch_size is 16, but the training DataLoader of .* has batch_size 8: make them equal",
    ),
    "a stream": (
        "class Stream(IterableDataset):\n    def __iter__(self):\n        return iter(Rows(20, 0))\n"
        "def own():\n    return Stream(), Rows(50, 1)",
        {"data": "own"},
        r"train: Stream must have a length \(__len__\) and items by number",
    ),
    "an item of three": (
        "class Triples(Rows):\n    def __getitem__(self, index):\n        return 1, 2, 3\n"
        "def own():\n    return Triples(20, 0), Rows(50, 1)",
        {"data": "own"},
        r"train: an item must be \(input, target\), got a list of 3: let __getitem__ return these two, or collate_fn",
    ),
    "a Dataset that raises in a worker": (
        "class Broken(Rows):\n    def __getitem__(self, index):\n        raise OSError('disk\\ngone')\n"
        "def own():\n    return DataLoader(Broken(20, 0), 16, num_workers=1), Rows(50, 1), Rows(50, 2)",
        {"data": "own"},
        r"train: reading it raised OSError: disk gone \([^ ]*user_code_\d+\.py:\d+, in __getitem__\)$",
    ),
    "a Dataset that raises of a text in a worker": (
        "class Broken(Rows):\n    def __getitem__(self, index):\n        return compile('a b', 'rule', 'eval')\n"
        "def own():\n    return DataLoader(Broken(20, 0), 16, num_workers=1), Rows(50, 1), Rows(50, 2)",
        {"data": "own"},
        r"raised SyntaxError: invalid syntax .*\([^ ]*user_code_\d+\.py:\d+, in __getitem__\)$",
    ),
    "a Dataset that raises": (
        "class Broken(Rows):\n    def __getitem__(self, index):\n        raise OSError('disk gone')\n"
        "def own():\n    return Broken(20, 0), Rows(50, 1)",
        {"data": "own"},
        r"train: reading it raised OSError: disk gone \(.*\.py:\d+, in __getitem__\)",
    ),
}


@pytest.mark.parametrize("case", NOT_RIGHT)
def test_what_is_not_right_is_said_in_one_line_with_a_way_out(make: Make, case: str) -> None:
    source, settings, message = NOT_RIGHT[case]
    assert re.search(message, error_of(make(source, **settings)))


@pytest.mark.parametrize(
    "metric", ["(outputs[:, 0] - targets).abs().mean()", "outputs.mean() - targets.float().mean()"]
)
def test_scores_that_take_a_column_of_outputs_as_it_is_meant_are_taken(make: Make, metric: str) -> None:
    source = (
        "def column():\n    return nn.Linear(5, 1)\n"
        "def loss(outputs, targets):\n    return (outputs[:, 0] - targets).square().mean()\n"
        f"def metric(outputs, targets):\n    return float({metric})"
    )
    load(make(source, model="column", loss="loss", metric="metric"))


def test_the_line_of_the_users_own_code_is_named(make: Make) -> None:
    source = "\ndef own():\n    return helper()\n\ndef helper():\n    raise ValueError('no data today')"
    workload = make(source, data="own")
    line = (TABLE + source).splitlines().index("    raise ValueError('no data today')") + 1
    file = f"{workload.python_path}/{workload.data.split(':')[0]}.py"
    assert error_of(workload).endswith(f"raised ValueError: no data today ({file}:{line}, in helper)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "import no_such_package",
            r"^workload\.data 'broken_\d+:data': importing 'broken_\d+' raised ModuleNotFoundError: "
            r"No module named 'no_such_package' \(.*\.py:1, in <module>",
        ),
        ("def model(:", r"raised SyntaxError: .*\.py:1\)"),
        ("raise SystemExit", r"raised SystemExit"),
    ],
)
def test_a_module_that_does_not_import_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    name = f"broken_{next(numbers)}"
    (tmp_path / f"{name}.py").write_text(content)
    workload = CallableWorkload(model=f"{name}:model", data=f"{name}:data", python_path=tmp_path)
    assert re.search(message, error_of(workload))


@pytest.mark.parametrize("name", ["random", "itertools"])
def test_a_module_that_python_has_under_the_same_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())  # processes that later tests start would find it
    (tmp_path / f"{name}.py").write_text(TABLE)
    message = error_of(CallableWorkload(model=f"{name}:model", data=f"{name}:data", python_path=tmp_path))
    assert message.endswith(f" {tmp_path}/{name}.py is hidden by that module of the same name: rename yours.")


@pytest.mark.parametrize(
    "reference", ["mymodule", "mymodule:", ":data", "my module:data", "my/module.py:data", "a:b:c"]
)
def test_a_reference_must_be_module_and_function(reference: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"must be package.module:function, got {reference!r}")):
        CallableWorkload(model="m:f", data=reference)


def test_a_metric_of_torchmetrics_takes_its_settings_and_gives_its_name(make: Make) -> None:
    workload = make(
        metric="torchmetrics.functional.classification:multiclass_f1_score",
        metric_settings={"num_classes": 3, "average": "macro"},
    )
    assert hash(workload) == hash(workload.model_copy())
    loaded = load(workload)
    inputs, targets = whole(loaded, "test")
    outputs = loaded.build_model()(inputs).detach()
    expected = f1_score(targets, outputs.argmax(1), average="macro", labels=[0, 1, 2], zero_division=0.0)
    assert loaded.metric(outputs, targets) == pytest.approx(expected)
    assert loaded.facts.metric == "multiclass_f1_score"


def test_settings_that_a_metric_does_not_take_are_told_in_one_line(make: Make) -> None:
    message = error_of(
        make("def metric(outputs, targets, *, power):\n    return 1.0", metric="metric", metric_settings={"powr": 2})
    )
    assert re.search(r"workload.metric '.*:metric' with metric_settings {'powr': 2} must return .* TypeError", message)
    assert "unexpected keyword argument 'powr'" in message


@pytest.mark.parametrize(
    "setting", [{"metric_name": "f1"}, {"metric_settings": {"beta": 2}}, {"chance": 0.5}, {"higher_is_better": False}]
)
def test_what_describes_a_metric_needs_the_metric(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(setting))} describes a metric of your own"):
        CallableWorkload(model="m:f", data="m:g", **setting)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_batches(make: Make) -> None:
    for workload in (make(), make("def own():\n    return Rows(200, 0), Rows(50, 1)", data="own")):
        on_gpu = workload.load(torch.device("cuda", 0), 0)
        for (inputs, targets), (expected, expected_targets) in zip(epoch(on_gpu), epoch(load(workload)), strict=True):
            assert inputs.is_cuda
            assert torch.equal(inputs.cpu(), expected)
            assert torch.equal(targets.cpu(), expected_targets)
        assert next(on_gpu.build_model().parameters()).is_cuda


def test_preparing_tells_what_it_costs_to_read_data_example_by_example(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, training)
    clock.charge(Run, "step", 0.002)
    monkeypatch.setitem(sys.modules, "clock_of_this_test", clock)
    source = "import clock_of_this_test as time\n" + COUNTED.format(
        item="self.inputs[index], time.sleep(0.001) or int(self.targets[index])",
        train="DataLoader(Counted(200, 0), 16, shuffle=True)",
        test="Rows(50, 1), Rows(50, 2)",
    )
    plan = TrainingPlan(2, Choice("sgd", {}), device="cpu")

    def reading(workload: CallableWorkload) -> Reading | None:
        settings = workload.model_dump(exclude={"name"}, exclude_none=True)
        assert prepare(Choice("callable", settings), plan, 0).reading is None, "nobody would hear of it"
        return prepare(Choice("callable", settings), plan, 0, times_reading=True).reading

    found = reading(make(source, data="own"))
    assert found is not None
    assert 0.015 < found.batch_seconds < 0.0161, "16 times a millisecond, less often where an epoch ends"
    assert found.step_seconds == pytest.approx(found.batch_seconds + 0.002)
    assert reading(make()) is None, "tensors"


def test_items_of_a_users_own_tensor_data_set_are_what_it_makes_of_them(make: Make) -> None:
    source = (
        "class Scaled(TensorDataset):\n"
        "    def __getitem__(self, index):\n"
        "        inputs, targets = super().__getitem__(index)\n"
        "        return 2 * inputs, targets\n"
        "def own():\n"
        "    return Scaled(*table()), Scaled(*table(50, seed=1))\n"
    )
    ours, plain = (whole(load(workload), "test")[0] for workload in (make(source, data="own"), make()))
    assert torch.equal(ours, 2 * plain)


SAMPLED = """
class Shuffled:
    def __init__(self):
        self.generator = np.random.default_rng(3)
    def __iter__(self):
        return iter(self.generator.permutation(96).tolist())
    def __len__(self):
        return 96

def batches(sampler):
    return torch.utils.data.BatchSampler(sampler, 16, False)

def own():
    rows = Rows(200, 0)
    loaders = {
        "subset": lambda: DataLoader(rows, batch_sampler=batches(SubsetRandomSampler(range(96)))),
        "own generator": lambda: DataLoader(
            rows, batch_sampler=batches(SubsetRandomSampler(range(96), torch.Generator().manual_seed(3)))
        ),
        "numpy's generator": lambda: DataLoader(rows, 16, sampler=Shuffled()),
        "distributed": lambda: DataLoader(
            rows, 16, sampler=torch.utils.data.DistributedSampler(Subset(rows, range(96)), 1, 0)
        ),
    }
    return loaders[KIND](), Rows(60, 2), Rows(50, 1)
"""


def run_of(loaded: LoadedWorkload, seed: int) -> Run:
    return new_run(loaded, TrainingPlan(1, Choice("sgd", {}), device="cpu"), CPU, seed)


def first_losses(loaded: LoadedWorkload, seed: int) -> list[float]:
    run = run_of(loaded, seed)
    for _ in range(loaded.facts.steps_per_epoch + 1):
        run.step(0.1)
    return run.take_losses()


@pytest.mark.parametrize("kind", ["subset", "own generator", "numpy's generator", "distributed"])
def test_whatever_sampler_a_training_loader_has_its_order_is_the_seeds_and_another_in_each_epoch(
    make: Make, kind: str
) -> None:
    workload = make(f"KIND = {kind!r}\n{SAMPLED}", data="own")
    loaded = load(workload)
    assert loaded.facts.train_count == 96
    expected = set(rows(torch.randn(200, 5, generator=torch.Generator().manual_seed(0))[:96]))
    generator = torch.Generator()
    epochs = [torch.cat([inputs for inputs, _ in loaded.train_batches(generator)]) for _ in range(2)]
    assert all(set(rows(inputs)) == expected for inputs in epochs)
    assert not torch.equal(*epochs)
    first, again, other = (next(run_of(loaded, seed).batches)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sampler", ["sampler=[5, 6, 7, 8] * 4, batch_size=16", "batch_sampler=[[5, 6, 7, 8] * 4]"])
def test_a_list_is_a_sampler(make: Make, sampler: str) -> None:
    loaded = load(
        make(f"def own():\n    return DataLoader(Rows(200, 0), {sampler}), Rows(60, 2), Rows(50, 1)", data="own")
    )
    assert loaded.facts.train_count == 16
    assert len(own_generators(loaded, loaded.build_model())) == 0
    [(inputs, _)] = epoch(loaded)
    assert torch.equal(inputs[:4], torch.randn(200, 5, generator=torch.Generator().manual_seed(0))[5:9])


def test_the_batch_sampler_of_an_evaluation_loader_leaves_out_what_it_leaves_out(make: Make) -> None:
    source = """
def own():
    batches = torch.utils.data.BatchSampler(SubsetRandomSampler(range(10, 30)), 16, False)
    return Rows(200, 0), DataLoader(Rows(50, 1), batch_sampler=batches)
"""
    inputs, _ = whole(load(make(source, data="own")), "test")
    assert torch.equal(inputs, torch.randn(50, 5, generator=torch.Generator().manual_seed(1))[10:30])


def test_workers_are_begun_as_the_loader_says(make: Make) -> None:
    source = """
class Opened(Rows):
    factor = 0.0
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return self.factor * inputs, target

def begin(worker):
    torch.utils.data.get_worker_info().dataset.factor = 2.0

def own():
    return Rows(200, 0), DataLoader(Opened(50, 1), 16, num_workers=1, worker_init_fn=begin)
"""
    inputs, _ = whole(load(make(source, data="own")), "test")
    assert torch.equal(inputs, 2 * torch.randn(50, 5, generator=torch.Generator().manual_seed(1)))


def test_chance_of_workers_that_persist_does_not_go_on_from_the_trial_before(make: Make) -> None:
    source = """
class Noisy(Rows):
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return torch.randn(5) + torch.from_numpy(inputs), target

def own():
    loader = DataLoader(Noisy(64, 0), 16, shuffle=True, num_workers=1, persistent_workers=True)
    return loader, Rows(60, 2), Rows(50, 1)
"""
    loaded = load(make(source, data="own"))
    assert first_losses(loaded, 0) == first_losses(loaded, 0)


COLLATED = """
import dataclasses
from collections import OrderedDict, UserDict, namedtuple
Named = namedtuple("Named", "inputs")

@dataclasses.dataclass(frozen=True)
class Record:
    inputs: torch.Tensor

def collate(items):
    inputs, targets = torch.utils.data.default_collate(items)
    return MAKE(inputs.double()), targets

def own():
    parts = {"train": Rows(96, 0), "validation": Rows(30, 1), "test": Rows(30, 2)}
    return {name: DataLoader(part, batch_size=16, collate_fn=collate) for name, part in parts.items()}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(5, 3)
    def forward(self, inputs):
        assert type(inputs) is type(MAKE(torch.zeros(1, 1)))
        return self.line(TAKE(inputs))
"""


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        ("lambda x: (x, 'text')", "lambda inputs: inputs[0]"),
        ("lambda x: [x]", "lambda inputs: inputs[0]"),
        ("Named", "lambda inputs: inputs.inputs"),
        ("Record", "lambda inputs: inputs.inputs"),
        ("lambda x: OrderedDict(x=x)", "lambda inputs: inputs['x']"),
        ("lambda x: UserDict(x=x)", "lambda inputs: inputs['x']"),
        ("lambda x: nn.utils.rnn.pack_sequence(list(x.float()))", "lambda inputs: inputs.data.view(5, -1).T"),
    ],
)
def test_a_model_is_given_inputs_of_the_kind_that_the_users_function_collates(
    make: Make, made: str, taken: str
) -> None:
    loaded = load(make(f"{COLLATED}MAKE = {made}\nTAKE = {taken}\n", data="own", model="Net"))
    assert len(first_losses(loaded, 0)) == 7


def test_inputs_whose_shape_changes_on_the_way_are_not_kept(make: Make) -> None:
    source = """
class Growing(Rows):
    def __getitem__(self, index):
        return self.inputs[index, : 4 + index // 256].mean(0, keepdim=True).repeat(4 + index // 256), 0

class Net(nn.Linear):
    def __init__(self):
        super().__init__(1, 3)
    def forward(self, inputs):
        return super().forward(inputs.mean(1, keepdim=True))

def own():
    return DataLoader(Rows(200, 0), 16), DataLoader(Growing(512, 2), 16), Rows(50, 1)
"""
    sizes = {
        inputs.shape[1] for inputs, _ in load(make(source, data="own", model="Net")).evaluation_batches("validation")
    }
    assert sizes == {4, 5}


def test_a_dataset_that_draws_from_a_generator_of_its_own_is_read_each_time(make: Make) -> None:
    source = """
import random

class Rarely(Rows):
    generator = None
    def __getitem__(self, index):
        self.generator = self.generator or random.Random(0)
        inputs, target = super().__getitem__(index)
        return inputs + 100 * (self.generator.random() < 1e-9), target

def own():
    return Rarely(200, 0), Rows(50, 1)
"""
    loaded = load(make(source, data="own"))
    assert isinstance(loaded, LoadedExamples)
    assert loaded.reads_examples


def test_a_model_may_ask_for_gradients_on_its_way_where_it_is_evaluated(make: Make) -> None:
    """As one whose outputs are forces, the gradients of an energy."""
    source = """
class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy, self.last = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(5, 3)
    def forward(self, inputs):
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            [forces] = torch.autograd.grad(self.energy(inputs).sum(), inputs, create_graph=True)
            return self.last(forces)
"""
    workload = make(source, model="Forces")
    settings = workload.model_dump(exclude={"name"}, exclude_none=True)
    prepare(Choice("callable", settings), TrainingPlan(2, Choice("sgd", {}), device="cpu"), 0)


def test_batches_that_are_padded_to_several_lengths_are_told_before_any_trial(make: Make) -> None:
    source = """
def collate(items):
    length = 1 + items[0][1]  # of the longest
    inputs, targets = torch.utils.data.default_collate(items)
    return inputs[:, :length], targets[:, None].repeat(1, length)

def part(seed):
    return DataLoader(Rows(64, seed), batch_size=16, collate_fn=collate)

def own():
    return part(0), part(1), part(2)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, inputs):
        return self.scale * inputs

def loss(outputs, targets):
    return (outputs - targets).abs().mean()

def metric(outputs, targets):
    return float(loss(outputs, targets))
"""
    workload = make(source, data="own", model="Net", loss="loss", metric="metric")
    settings = workload.model_dump(exclude={"name"}, exclude_none=True)
    with pytest.raises(WorkloadError, match=r"validation split have outputs of shapes \(1,\) and .*pad all batches"):
        prepare(Choice("callable", settings), TrainingPlan(2, Choice("sgd", {}), device="cpu"), 0)


@pytest.mark.parametrize(
    "given", ["batch_size=16, sampler=Endless()", "batch_sampler=BatchSampler(Endless(), 16, False)"]
)
def test_a_sampler_that_never_ends_gives_epochs_of_its_length(make: Make, given: str) -> None:
    source = f"""
from torch.utils.data import BatchSampler

class Endless:
    def __iter__(self):
        while True:
            yield from torch.randperm(200).tolist()
    def __len__(self):
        return 96

def own():
    return DataLoader(Rows(200, 0), {given}), Rows(60, 2), Rows(50, 1)
"""
    loaded = load(make(source, data="own"))
    assert loaded.facts.train_count == 96
    assert loaded.facts.steps_per_epoch == 6
    assert len(first_losses(loaded, 0)) == 7
    assert first_losses(loaded, 0) == first_losses(loaded, 0)


def test_batches_of_a_training_loaders_own_that_are_no_pairs_are_told(make: Make) -> None:
    source = """
class Named(DataLoader):
    def __iter__(self):
        return ({"inputs": inputs, "targets": targets} for inputs, targets in super().__iter__())

def own():
    return Named(Rows(200, 0), 16), Rows(60, 2), Rows(50, 1)
"""
    loaded = load(make(source, data="own"))
    with pytest.raises(WorkloadError, match=r"must be \(input, target\), got a dict"):
        first_losses(loaded, 0)


def test_what_a_loss_remembers_does_not_go_on_from_the_trial_before(make: Make) -> None:
    source = """
class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))
    def forward(self, outputs, targets):
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(0)
        return nn.functional.cross_entropy(outputs - self.centre, targets)

centred = Centred()
"""
    workload = make(source, loss="centred")
    assert first_losses(load(workload), 0) == first_losses(load(workload), 0)
    outputs, targets = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)
    loaded = load(workload)
    assert loaded.loss(outputs, targets) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert load(make(loss="torch.nn.functional:cross_entropy")).loss is torch.nn.functional.cross_entropy


def test_the_generator_of_a_loss_begins_each_trial_anew(make: Make) -> None:
    source = """
class Sampling:
    def __init__(self):
        self.generator = torch.Generator()
    def __call__(self, outputs, targets):
        kept = torch.rand(len(targets), generator=self.generator) < 0.5
        return (nn.functional.cross_entropy(outputs, targets, reduction="none") * kept).mean()

sampling = Sampling()
"""
    workload = make(source, loss="sampling")
    assert first_losses(load(workload), 0) == first_losses(load(workload), 0)


@pytest.mark.parametrize("evaluating", ["torch.no_grad()", "torch.inference_mode()"])
def test_a_model_may_evaluate_a_copy_whose_weights_are_averages(make: Make, evaluating: str) -> None:
    source = f"""
import copy
class Averaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = model()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
    def forward(self, inputs):
        if self.training:
            with torch.no_grad():
                for mean, weight in zip(self.average.parameters(), self.net.parameters()):
                    mean.lerp_(weight, 0.1)
            return self.net(inputs)
        with {evaluating}:
            return self.average(inputs)
"""
    workload = make(source, model="Averaged")
    settings = workload.model_dump(exclude={"name"}, exclude_none=True)
    prepare(Choice("callable", settings), TrainingPlan(1.0, Choice("sgd", {}), device="cpu"), 0)
