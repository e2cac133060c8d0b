"""Augmentation of a whole batch at once, where it lies; every draw is made beforehand on the processor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PADDING = 4
"""Pixels of black border that a crop may reach into: the custom on CIFAR (He et al., 2015, section 4.2)."""


@dataclass(frozen=True)
class Draws:
    """The chance of many examples: where each crop begins (two numbers of 0 to 8) and whether each is mirrored."""

    corners: torch.Tensor | None
    mirrored: torch.Tensor | None

    @staticmethod
    def of(augment: str, count: int, generator: torch.Generator, device: torch.device) -> Draws:
        """Draw for `count` examples: the same numbers on every device."""
        corners = mirrored = None
        if augment in ("crop", "crop_flip"):
            corners = torch.randint(2 * PADDING + 1, (count, 2), generator=generator).to(device)
        if augment in ("flip", "crop_flip"):
            mirrored = torch.randint(2, (count,), generator=generator).bool().to(device)
        return Draws(corners, mirrored)

    def apply(self, images: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return `images` augmented with the draws of `rows`; shape and type stay."""
        if self.corners is not None:
            images = crop(images, self.corners[rows])
        if self.mirrored is not None:
            images = torch.where(self.mirrored[rows, None, None, None], images.flip(3), images)
        return images


def crop(images: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Return each image shifted so that its window begins at its corner of the padded image; (4, 4) changes nothing."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, corners[:, 0], corners[:, 1]]
