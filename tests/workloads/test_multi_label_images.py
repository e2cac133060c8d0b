from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrsearch.engine import run_trials
from lrsearch.errors import DataError
from lrsearch.interfaces import FitsMetric
from lrsearch.range_test import judge
from lrsearch.trial import Choice, Proposal, RangeTestPlan, SoloCost, TrainingPlan, TrialResult, TrialSpec
from lrsearch.workloads._multi_label import FittedMicroF1, micro_f1_chance
from lrsearch.workloads.multi_label_images import MultiLabelImages
from tests.executors.contract import Listener
from tests.workloads.contract import PixelContract, epoch, load, whole
from tests.workloads.fashion import LABELS, read_labels, write_labels, write_part


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three annotated parts, each numbered from 1, as in the challenge."""
    root = tmp_path_factory.mktemp("imaterialist")
    for seed, (name, count) in enumerate({"train": 300, "validation": 200, "test": 60}.items()):
        write_part(root, name, count, seed=seed)
    return root


@pytest.fixture
def copy(challenge: Path, tmp_path: Path) -> Path:
    """One that a test may spoil: 8 training and 4 test images."""
    root = tmp_path / "spoilt"
    write_part(root, "train", 8, seed=0)
    write_part(root, "test", 4, seed=1)
    return root


def labels_of(root: Path, name: str) -> torch.Tensor:
    """Return zeros and ones by reading the file again, in another way."""
    annotations = read_labels(root, name)["annotations"]
    return torch.tensor([[label in entry["labelId"] for label in LABELS] for entry in annotations]).to(torch.uint8)


class TestTrainAndTest(PixelContract):
    """Without validation.json each seed holds back a validation split of its own."""

    @pytest.fixture
    def workload(self, challenge: Path, tmp_path: Path) -> MultiLabelImages:
        root = tmp_path / "fashion"
        shutil.copytree(challenge, root, ignore=shutil.ignore_patterns("validation*"))
        return MultiLabelImages(data_root=root, batch_size=16)

    def test_pixels_and_labels_are_those_of_the_files(self, workload: MultiLabelImages) -> None:
        images = workload.read()
        with Image.open(workload.data_root / "test" / "7.jpg") as image:
            assert np.array_equal(images.test_images[6], np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        assert np.array_equal(images.train_labels, labels_of(workload.data_root, "train"))
        assert np.array_equal(images.test_labels, labels_of(workload.data_root, "test"))

    def test_chance_and_facts(self, workload: MultiLabelImages) -> None:
        loaded = load(workload, batch_size=1)
        facts = loaded.facts
        assert (facts.metric, facts.higher_is_better, facts.class_count) == ("micro_f1", True, 5)
        assert facts.chance == micro_f1_chance(torch.cat([targets for _, targets in epoch(loaded)]).numpy())
        assert facts.description == "fashion, 300 images 16x16x3, model small_cnn"

    def test_a_corrected_label_needs_no_new_decoding(self, workload: MultiLabelImages, cache_folder: Path) -> None:
        workload.read()
        [before] = [file.stat().st_mtime_ns for file in cache_folder.iterdir()]
        content = read_labels(workload.data_root, "train")
        content["annotations"][0]["labelId"] = ["22"]
        write_labels(workload.data_root, "train", content)
        assert workload.read().train_labels[0].tolist() == [0, 0, 1, 0, 0]
        assert [file.stat().st_mtime_ns for file in cache_folder.iterdir()] == [before]


class TestWhichPartIsWhich:
    def counts(self, root: Path, **settings: Any) -> tuple[int, int, int]:
        facts = load(MultiLabelImages(data_root=root, batch_size=16, **settings)).facts
        return facts.train_count, facts.validation_count, facts.test_count

    def test_validation_json_is_the_validation_split_of_every_seed(self, challenge: Path) -> None:
        assert self.counts(challenge) == (300, 200, 60)
        assert self.counts(challenge, train_limit=100) == (100, 200, 60)
        workload = MultiLabelImages(data_root=challenge, batch_size=16)
        assert all(
            torch.equal(whole(load(workload, seed), "validation")[1], labels_of(challenge, "validation"))
            for seed in (0, 1)
        )

    def test_without_annotations_for_test_json_the_validation_part_is_the_test_set(
        self, challenge: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "copy"
        shutil.copytree(challenge, root)
        write_labels(root, "test", {"images": read_labels(root, "test")["images"]})
        assert self.counts(root) == (240, 60, 200)
        assert torch.equal(
            whole(load(MultiLabelImages(data_root=root, batch_size=16)), "test")[1], labels_of(root, "validation")
        )
        assert self.counts(root, test_fraction=0.1) == (270, 200, 30)

    def test_all_images_may_lie_in_one_folder_when_their_ids_differ(self, tmp_path: Path) -> None:
        write_part(tmp_path, "train", 40, seed=0, folder="images")
        assert self.counts(tmp_path, test_fraction=0.25) == (24, 6, 10)
        (tmp_path / "images" / "1.jpg").rename(tmp_path / "1.jpg")
        for path in list((tmp_path / "images").iterdir()):
            path.rename(tmp_path / path.name)
        (tmp_path / "images").rmdir()
        assert self.counts(tmp_path, test_fraction=0.25) == (24, 6, 10)

    def test_without_any_test_part_the_way_out_is_named(self, copy: Path) -> None:
        (copy / "test.json").unlink()
        assert "set workload.test_fraction" in error_of(copy)

    def test_one_folder_with_ids_that_recur_would_test_on_training_images(self, copy: Path) -> None:
        shutil.rmtree(copy / "test")
        (copy / "train").rename(copy / "images")
        assert "images/1.jpg belongs to both train.json and test.json: give each part a folder" in error_of(copy)

    def test_a_test_fraction_beside_a_test_part_is_refused(self, copy: Path) -> None:
        assert "workload.test_fraction (0.5) must go" in error_of(copy, test_fraction=0.5)


def error_of(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(MultiLabelImages(data_root=root, batch_size=1, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["images"].append({"imageId": "1"}), "image '1' stands in images more than once"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "image '1' stands in annotations more than once"),
        (lambda c: c["annotations"].pop(2), "image '3' has no annotation: add its labels"),
        (lambda c: c["images"].pop(), "image '4' has an annotation but is not in images"),
        (lambda c: c["annotations"][1].update(labelId=["777"]), "image '2' has the label '777', which no image"),
        (lambda c: c["annotations"][1].update(labelId="22"), r"test.json, annotations.1.labelId: Input should be"),
        (lambda c: c["annotations"][1].pop("labelId"), "test.json, annotations.1.labelId: Field required"),
        (lambda c: c.pop("images"), "test.json, images: Field required"),
        (lambda c: c.update(images=[]), "test.json lists no images"),
    ],
)
def test_a_wrong_label_file_is_named_with_its_image(copy: Path, spoil: Spoil, message: str) -> None:
    content = read_labels(copy, "test")
    spoil(content)
    write_labels(copy, "test", content)
    assert message in error_of(copy)


def test_numbers_serve_as_ids_and_an_image_may_have_no_label(copy: Path) -> None:
    content = read_labels(copy, "test")
    content["images"][0]["imageId"] = content["annotations"][0]["imageId"] = 1
    content["annotations"][0]["labelId"] = []
    write_labels(copy, "test", content)
    assert whole(load(MultiLabelImages(data_root=copy, batch_size=1)), "test")[1][0].sum() == 0


def test_missing_doubled_and_broken_images_are_named(copy: Path) -> None:
    (copy / "test" / "2.jpg").unlink()
    (copy / "test" / "3.jpg").unlink()
    assert re.search(r"test.json lists image '2' \(and 1 more\), but .*test holds no 2.jpg", error_of(copy))
    (copy / "test" / "2.jpg").write_bytes(b"no image")
    shutil.copy(copy / "test" / "1.jpg", copy / "test" / "3.jpg")
    assert re.search(r"test/2.jpg cannot be read", error_of(copy))
    shutil.copy(copy / "test" / "1.jpg", copy / "test" / "2.png")
    assert re.search(r"2.jpg and .*2.png are both the image '2': remove one", error_of(copy))


def test_no_json_and_broken_json_are_named(copy: Path) -> None:
    (copy / "train.json").write_text("{")
    assert "train.json: Invalid JSON" in error_of(copy)
    (copy / "train.json").unlink()
    assert "train.json is not there: point workload.data_root at a folder with train.json" in error_of(copy)


def spec(root: Path, proposal: Proposal, epochs: float = 1.0, seed: int = 0, number: int = 0) -> TrialSpec:
    sgd = Choice("sgd", {"momentum": 0.9, "weight_decay": 0.0})
    workload = Choice("multi_label_images", {"data_root": root, "batch_size": 16})
    plan, solo = TrainingPlan(epochs, sgd, device="cpu"), SoloCost(0.0, 0.0, 0.0, 0.0)
    return TrialSpec(f"u{number}", "s", "w", seed, number, proposal, workload, plan, solo=solo)


def run(root: Path, proposal: Proposal, epochs: float = 1.0) -> TrialResult:
    [result] = run_trials([spec(root, proposal, epochs)], Listener())
    assert result.error is None
    return result


def test_a_net_learns_shapes_and_colours_and_is_tested_with_the_threshold_of_its_validation(
    challenge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[float] = []
    used: list[float] = []
    fit, score = FittedMicroF1.of, FittedMicroF1.__call__

    def watched_fit(outputs: torch.Tensor, targets: torch.Tensor) -> FittedMicroF1:
        found = fit(outputs, targets)
        fitted.append(found.threshold)
        return found

    def watched_score(metric: FittedMicroF1, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        used.append(metric.threshold)
        return score(metric, outputs, targets)

    monkeypatch.setattr(FittedMicroF1, "of", watched_fit)
    monkeypatch.setattr(FittedMicroF1, "__call__", watched_score)
    result = run(challenge, Proposal("train", Choice("constant"), 0.1), epochs=10)
    assert isinstance(load(MultiLabelImages(data_root=challenge, batch_size=16)), FitsMetric)
    assert result.facts is not None
    assert result.facts.chance is not None
    assert result.test_metric is not None
    assert result.facts.chance < 0.75
    assert result.test_metric > 0.9
    assert len(fitted) == 10, "at each epoch's end, on validation; never on the test set"
    assert used == [*fitted, fitted[-1]]


def test_nets_of_several_seeds_that_train_together_have_each_its_own_labels_and_threshold(challenge: Path) -> None:
    specs = [
        spec(challenge, Proposal("train", Choice("constant"), 0.02 * (number + 1)), 2, seed, number)
        for number, seed in enumerate((0, 1, 0))
    ]
    together = run_trials(specs, Listener())
    assert [result.gang_size for result in together] == [3, 3, 3]
    for found, one in zip(together, specs, strict=True):
        [expected] = run_trials([one], Listener())
        assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)
        assert found.test_loss == pytest.approx(expected.test_loss, rel=1e-3)
        assert found.test_metric == pytest.approx(expected.test_metric, abs=0.01)


def test_a_range_test_reads_micro_f1(challenge: Path) -> None:
    plan = RangeTestPlan(1e-4, 10.0, min_steps=150)
    result = run(challenge, Proposal("range_test", range_test=plan))
    assert result.facts is not None
    verdict = judge(result.range_test, result.facts, plan, "sgd", bootstrap=0)
    assert (verdict.status, verdict.signal) == ("ok", "validation_metric")
    assert verdict.max_lr is not None
    assert 0.01 < verdict.max_lr < 2.0
