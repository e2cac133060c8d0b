"""What every workload promises. A member's test class inherits WorkloadContract and gives a small `workload`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from lrsearch import chance
from lrsearch.errors import WorkloadError
from lrsearch.interfaces import LoadedWorkload, Split
from lrsearch.trial import Choice
from lrsearch.workloads import _images
from tests.resuming import assert_goes_on_bit_for_bit, spec

CPU = torch.device("cpu")


def load(workload: Any, seed: int = 0, **changes: Any) -> LoadedWorkload:
    """Load with other settings; checked again, as `model_copy` would not."""
    loaded: LoadedWorkload = type(workload)(**{**workload.model_dump(exclude_unset=True), **changes}).load(CPU, seed)
    return loaded


def epoch(loaded: LoadedWorkload, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loaded.train_batches(torch.Generator().manual_seed(seed)))


def whole(loaded: LoadedWorkload, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loaded.evaluation_batches(split))
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def rows(inputs: torch.Tensor) -> list[bytes]:
    """Return the inputs as values that sets can hold; the contract's data have no two equal examples."""
    return [row.numpy().tobytes() for row in inputs.contiguous()]


def _unscaled(inputs: torch.Tensor) -> torch.Tensor:
    """Return each channel (of a table: each column) between 0 and 1, whatever a seed's normalisation made of it."""
    dims = (0, 2, 3) if inputs.ndim == 4 else (0,)
    lowest, highest = inputs.amin(dims, keepdim=True), inputs.amax(dims, keepdim=True)
    return (inputs - lowest) / (highest - lowest)


class WorkloadContract:
    harder: ClassVar[dict[str, Any]] = {}
    """Settings with which a run draws more numbers."""

    @pytest.fixture
    def workload(self) -> Any:
        raise NotImplementedError

    def test_the_facts_agree_with_the_data(self, workload: Any) -> None:
        loaded = load(workload)
        facts, batches = loaded.facts, epoch(loaded)
        assert len(batches) == facts.steps_per_epoch == facts.train_count // facts.batch_size
        for inputs, targets in batches:
            assert inputs.shape == (facts.batch_size, *facts.input_shape)
            assert len(targets) == facts.batch_size
        counts: dict[Split, int] = {
            "validation": facts.validation_count,
            "range_test": facts.range_test_count,
            "test": facts.test_count,
        }
        for split, count in counts.items():
            inputs, targets = whole(loaded, split)
            assert inputs.shape == (count, *facts.input_shape)
            assert len(targets) == count
        assert facts.range_test_count == min(2000, facts.validation_count)
        assert "\n" not in facts.description
        assert workload.model in facts.description

    def test_the_splits_share_no_example(self, workload: Any) -> None:
        loaded = load(workload, batch_size=1)
        train = rows(torch.cat([inputs for inputs, _ in epoch(loaded)]))
        validation, test = rows(whole(loaded, "validation")[0]), rows(whole(loaded, "test")[0])
        assert len({*train, *validation, *test}) == len(train) + len(validation) + len(test)
        assert len(train) == loaded.facts.train_count
        assert set(rows(whole(loaded, "range_test")[0])) <= set(validation)

    def test_another_seed_holds_back_other_examples_and_keeps_the_test_set(self, workload: Any) -> None:
        first, again, other = load(workload, 0), load(workload, 0), load(workload, 1)
        assert rows(whole(first, "validation")[0]) == rows(whole(again, "validation")[0])
        assert not torch.equal(whole(first, "validation")[0], whole(other, "validation")[0])
        for part, same in zip(whole(first, "test"), whole(other, "test"), strict=True):
            if part.is_floating_point():
                torch.testing.assert_close(_unscaled(part), _unscaled(same))
            else:
                assert torch.equal(part, same)

    def test_the_generator_alone_decides_the_batches(self, workload: Any) -> None:
        loaded = load(workload)
        torch.manual_seed(1)
        first = epoch(loaded, seed=5)
        torch.manual_seed(2)
        second, other = epoch(loaded, seed=5), epoch(loaded, seed=6)
        assert all(torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True))
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
        generator = torch.Generator().manual_seed(5)
        epochs = [list(loaded.train_batches(generator)) for _ in range(2)]
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(*epochs, strict=True))

    def test_evaluation_has_one_order(self, workload: Any) -> None:
        loaded = load(workload)
        splits: tuple[Split, ...] = ("validation", "range_test", "test")
        for split in splits:
            first, second = whole(loaded, split), whole(loaded, split)
            assert torch.equal(first[0], second[0])
            assert torch.equal(first[1], second[1])

    def test_evaluation_draws_no_chance(self, workload: Any) -> None:
        """What an evaluation draws would change the steps after it."""
        loaded, before = load(workload), chance.snapshot(())
        whole(loaded, "validation")
        assert not chance.has_drawn(before)

    def test_loading_leaves_the_global_generators_alone(self, workload: Any) -> None:
        torch.manual_seed(3)
        np.random.seed(3)
        expected = torch.rand(1), np.random.rand()
        torch.manual_seed(3)
        np.random.seed(3)
        load(workload, seed=77)
        assert (torch.rand(1), np.random.rand()) == expected

    def test_the_seed_decides_the_initial_weights(self, workload: Any) -> None:
        loaded = load(workload)

        def weights(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            return torch.nn.utils.parameters_to_vector(loaded.build_model().parameters())

        assert torch.equal(weights(0), weights(0))
        assert not torch.equal(weights(0), weights(1))
        assert weights(0).numel() == loaded.facts.parameter_count

    def test_the_loss_of_the_model_can_be_differentiated(self, workload: Any) -> None:
        loaded = load(workload)
        model = loaded.build_model()
        inputs, targets = epoch(loaded)[0]
        loss = loaded.loss(model(inputs), targets)
        assert loss.shape == ()
        assert bool(torch.isfinite(loss))
        loss.backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_a_run_that_was_cut_short_goes_on_bit_for_bit(self, workload: Any, tmp_path: Path) -> None:
        settings = {**workload.model_dump(mode="json", exclude_unset=True), **self.harder}
        settings.pop("name", None)
        trial = spec(Choice(workload.name, settings), epochs=1.3, schedule="triangular2")
        assert_goes_on_bit_for_bit(trial, tmp_path, cuts=(0.75,))

    def test_a_batch_larger_than_the_training_split_is_refused(self, workload: Any) -> None:
        with pytest.raises(WorkloadError, match=r"^workload.batch_size must be at most .*, \d+, got 100000: lower it"):
            load(workload, batch_size=100_000)


class ClassificationContract(WorkloadContract):
    """Workloads with cross-entropy and accuracy."""

    def test_every_split_has_each_class_in_its_share(self, workload: Any) -> None:
        loaded = load(workload, batch_size=1)
        train = torch.cat([targets for _, targets in epoch(loaded)])
        validation, subset = whole(loaded, "validation")[1], whole(loaded, "range_test")[1]
        pool = torch.cat([train, validation])
        for part, source in ((validation, pool), (subset, validation)):
            for label, members in Counter(source.tolist()).items():
                assert abs(int((part == label).sum()) - len(part) * members / len(source)) < 1

    def test_the_model_returns_a_value_per_class(self, workload: Any) -> None:
        loaded = load(workload)
        outputs = loaded.build_model()(epoch(loaded)[0][0])
        assert outputs.shape == (loaded.facts.batch_size, loaded.facts.class_count)

    def test_the_metric_is_accuracy(self, workload: Any) -> None:
        loaded = load(workload)
        model = loaded.build_model().eval()
        inputs, targets = whole(loaded, "test")
        with torch.no_grad():
            outputs = model(inputs)
        assert loaded.metric(outputs, targets) == pytest.approx(accuracy_score(targets, outputs.argmax(1)))
        assert loaded.facts.metric == "accuracy"
        assert loaded.facts.higher_is_better

    def test_chance_is_the_share_of_the_commonest_class(self, workload: Any) -> None:
        loaded = load(workload, batch_size=1)
        targets = torch.cat([targets for _, targets in epoch(loaded)]).tolist()
        assert loaded.facts.chance == pytest.approx(max(Counter(targets).values()) / len(targets))


class PixelContract(WorkloadContract):
    """Workloads with images, normalised on the device."""

    harder: ClassVar[dict[str, Any]] = {"augment": "crop_flip"}

    def test_the_training_split_has_mean_zero_and_deviation_one(self, workload: Any) -> None:
        loaded = load(workload, batch_size=1)
        images = torch.cat([inputs for inputs, _ in epoch(loaded)]).double()
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(images.shape[1]).double(), atol=1e-5, rtol=0)
        deviation = images.std((0, 2, 3), correction=0)
        torch.testing.assert_close(deviation, torch.ones(images.shape[1]).double(), atol=1e-5, rtol=0)

    def test_caffe_nets_get_raw_pixels_less_the_mean_image(self, workload: Any) -> None:
        loaded = load(workload, batch_size=1, model="mlp")
        if min(loaded.facts.input_shape[1:]) < 8:
            pytest.skip("too small for a Caffe net")
        raw = load(workload, batch_size=1, model="cifar10_quick")
        images = torch.cat([inputs for inputs, _ in epoch(raw)])
        torch.testing.assert_close(images.mean(0), torch.zeros(images.shape[1:]), atol=1e-3, rtol=0)
        # Pixels are whole numbers, so two images differ by whole numbers.
        difference = images[0] - images[1]
        torch.testing.assert_close(difference, difference.round(), atol=1e-3, rtol=0)
        assert float(difference.abs().max()) > 5

    def test_augmentation_keeps_shapes_and_order_and_spares_evaluation(self, workload: Any) -> None:
        plain, augmented = load(workload), load(workload, augment="crop_flip")
        for (inputs, targets), (changed, same_targets) in zip(epoch(plain), epoch(augmented), strict=True):
            assert changed.shape == inputs.shape
            assert torch.equal(targets, same_targets)
        assert not torch.equal(epoch(plain)[0][0], epoch(augmented)[0][0])
        assert torch.equal(whole(plain, "validation")[0], whole(augmented, "validation")[0])
        assert "crop and flip" in augmented.facts.description

    def test_a_limit_keeps_a_stratified_subset_that_no_seed_changes(self, workload: Any) -> None:
        facts = load(workload).facts
        limit = (facts.train_count + facts.validation_count) // 2
        kept = []
        for seed in (0, 1):
            loaded = load(workload, seed, train_limit=limit, batch_size=1, model="cifar10_quick")
            pool = torch.cat([*(targets for _, targets in epoch(loaded)), whole(loaded, "validation")[1]])
            assert loaded.facts.train_count + loaded.facts.validation_count == len(pool) == limit
            kept.append(sorted(pool.tolist()))
        assert kept[0] == kept[1]
        assert f"{limit} of {facts.train_count + facts.validation_count} images" in loaded.facts.description

    @pytest.mark.gpu
    @pytest.mark.parametrize("fits", [True, False])
    def test_a_gpu_sees_the_same_batches(self, workload: Any, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the images stay in the machine's memory."""
        monkeypatch.setattr(_images, "_fit", lambda count, device: fits)
        _images._on_device.cache_clear()
        _images._prepare.cache_clear()
        settings = type(workload)(**{**workload.model_dump(exclude_unset=True), "augment": "crop_flip"})
        on_gpu, on_cpu = settings.load(torch.device("cuda", 0), 0), settings.load(CPU, 0)
        for (inputs, targets), (expected, expected_targets) in zip(epoch(on_gpu), epoch(on_cpu), strict=True):
            assert inputs.is_cuda
            assert torch.equal(targets.cpu(), expected_targets)
            torch.testing.assert_close(inputs.cpu(), expected)


class ImageContract(PixelContract, ClassificationContract):
    """Workloads that put images into classes."""
