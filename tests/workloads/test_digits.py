from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lrsearch.errors import WorkloadError
from lrsearch.workloads._images import _fit
from lrsearch.workloads.digits import Digits
from tests.workloads.contract import ImageContract, load


class TestDigits(ImageContract):
    @pytest.fixture
    def workload(self) -> Digits:
        return Digits(batch_size=32)

    def test_all_of_scikit_learns_images_are_there(self, workload: Digits) -> None:
        facts = load(workload).facts
        assert facts.train_count + facts.validation_count + facts.test_count == len(load_digits().images) == 1797
        assert facts.test_count == 359
        assert facts.input_shape == (1, 8, 8)
        assert facts.description == "digits, 1438 images 8x8x1, model mlp"

    def test_pixels_and_classes_are_scikit_learns(self, workload: Digits) -> None:
        images, digits = workload.read(), load_digits()
        pixels = np.concatenate([images.train_images, images.test_images])[:, 0]
        labels = np.concatenate([images.train_labels, images.test_labels])
        found = Counter((image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True))
        original = zip(digits.images.astype(np.uint8), digits.target, strict=True)
        assert found == Counter((image.tobytes(), int(label)) for image, label in original)

    def test_small_cnn_fits_and_lenet_says_what_does(self, workload: Digits) -> None:
        assert load(workload, model="small_cnn").facts.class_count == 10
        with pytest.raises(WorkloadError, match=r"at least 12x12 pixels, got 8x8: choose .*small_cnn"):
            load(workload, model="lenet")


def test_images_go_to_a_gpu_while_they_take_half_of_what_is_free_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 80_000))
    cuda = torch.device("cuda", 0)
    assert _fit(5_000, cuda)
    assert not _fit(5_001, cuda)
    assert _fit(10**15, torch.device("cpu"))
