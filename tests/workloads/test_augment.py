from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as TF

from lrsearch.workloads._augment import Draws

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (64, 3, 10, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def draws(augment: str, count: int = 64) -> Draws:
    return Draws.of(augment, count, torch.Generator().manual_seed(1), CPU)


@pytest.mark.parametrize("augment", ["crop", "flip", "crop_flip"])
def test_a_batch_equals_torchvision_image_by_image(images: torch.Tensor, augment: str) -> None:
    chance = draws(augment)
    expected = []
    for index, image in enumerate(images):
        if chance.corners is not None:
            top, left = chance.corners[index].tolist()
            image = TF.crop(TF.pad(image, [4, 4, 4, 4]), top, left, 10, 12)
        if chance.mirrored is not None and chance.mirrored[index]:
            image = TF.hflip(image)
        expected.append(image)
    result = chance.apply(images, slice(0, 64))
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))


def test_rows_get_their_own_draws_whatever_the_batch(images: torch.Tensor) -> None:
    chance = draws("crop_flip")
    parts = [chance.apply(images[start : start + 16], slice(start, start + 16)) for start in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), chance.apply(images, slice(0, 64)))


def test_every_corner_is_as_likely_as_the_others_and_half_is_mirrored() -> None:
    """8,100 draws over 9 rows: binomial(8100, 1/9), deviation 28; mirrored: deviation 45. Five deviations each."""
    chance = draws("crop_flip", 8100)
    assert chance.corners is not None
    assert chance.mirrored is not None
    for axis in (0, 1):
        counts = torch.bincount(chance.corners[:, axis], minlength=9)
        assert len(counts) == 9
        assert int((counts - 900).abs().max()) < 142
    assert abs(int(chance.mirrored.sum()) - 4050) < 225


def test_no_augmentation_draws_nothing(images: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    nothing = Draws.of("none", 64, generator, CPU)
    assert torch.equal(state, generator.get_state())
    assert nothing.apply(images, slice(0, 64)) is images
