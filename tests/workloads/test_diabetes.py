from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score

from lrsearch.workloads.diabetes import Diabetes
from tests.workloads.contract import WorkloadContract, epoch, load, whole


class TestDiabetes(WorkloadContract):
    @pytest.fixture
    def workload(self) -> Diabetes:
        return Diabetes()

    def test_the_training_split_alone_is_standardised(self, workload: Diabetes) -> None:
        loaded = load(workload, batch_size=1)
        for part in (torch.cat(parts) for parts in zip(*epoch(loaded), strict=True)):
            torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5, rtol=0)
            torch.testing.assert_close(part.std(0, correction=0), torch.ones(part.shape[1]), atol=1e-5, rtol=0)
        for value in whole(loaded, "test"):
            assert float(value.mean(0).abs().max()) > 0.01, "other patients have other means"

    def test_the_values_are_scikit_learns(self, workload: Diabetes) -> None:
        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
        loaded = load(workload, batch_size=1)
        parts = [*epoch(loaded), whole(loaded, "validation"), whole(loaded, "test")]
        ours = torch.cat([part[1].flatten() for part in parts]).sort().values.double()
        theirs = torch.tensor(targets).double().sort().values
        scale = (theirs[-1] - theirs[0]) / (ours[-1] - ours[0])
        torch.testing.assert_close((ours - ours[0]) * scale, theirs - theirs[0], atol=1e-3, rtol=0)
        assert loaded.facts.input_shape == (inputs.shape[1],)
        assert (loaded.facts.train_count, loaded.facts.validation_count, loaded.facts.test_count) == (283, 71, 88)

    def test_the_metric_is_r2_and_the_mean_has_chance(self, workload: Diabetes) -> None:
        loaded = load(workload)
        targets = whole(loaded, "test")[1]
        outputs = targets + torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
        assert loaded.metric(outputs, targets) == pytest.approx(r2_score(targets, outputs), abs=1e-5)
        assert loaded.metric(targets.mean().expand_as(targets), targets) == pytest.approx(loaded.facts.chance, abs=1e-5)
        assert loaded.metric(outputs / 0, targets) != loaded.metric(outputs / 0, targets), "NaN, and no warning"
        assert loaded.facts.higher_is_better

    def test_the_loss_is_the_mean_squared_error(self, workload: Diabetes) -> None:
        outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
        assert float(load(workload).loss(outputs, targets)) == 2.5
