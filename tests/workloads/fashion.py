"""A small data set in the files of the iMaterialist challenge: JPEGs of coloured shapes, labelled by both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"1": (220, 40, 40), "2": (40, 200, 40), "22": (60, 60, 230)}
SQUARE, CROSS = "30", "100"
LABELS = (*COLOURS, SQUARE, CROSS)
"""In the order of the numbers: the columns of the targets."""


def write_part(root: Path, name: str, count: int, *, seed: int, size: int = 16, folder: str | None = None) -> None:
    """Write `name`.json and its images into the folder of the part, or into `folder`."""
    generator = np.random.default_rng(seed)
    target = root / (name if folder is None else folder)
    target.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        image, labels = _shapes(generator, size)
        image.save(target / f"{number}.jpg", quality=92)
        images.append({"url": f"https://example.org/{number}.jpg", "imageId": str(number)})
        annotations.append({"imageId": str(number), "labelId": sorted(labels)})
    write_labels(root, name, {"images": images, "annotations": annotations, "license": "none"})


def write_labels(root: Path, name: str, content: Any) -> None:
    (root / f"{name}.json").write_text(json.dumps(content))


def read_labels(root: Path, name: str) -> Any:
    return json.loads((root / f"{name}.json").read_text())


def _shapes(generator: np.random.Generator, size: int) -> tuple[Image.Image, set[str]]:
    """Draw one or two shapes side by side, so that none hides another."""
    image = Image.fromarray(generator.integers(0, 60, (size, size, 3), dtype=np.uint8))
    draw, labels, width = ImageDraw.Draw(image), set(), size // 2
    for column in range(int(generator.integers(1, 3))):
        colour, kind = str(generator.choice(list(COLOURS))), str(generator.choice([SQUARE, CROSS]))
        left, top = column * width, int(generator.integers(0, size - width + 1))
        right, bottom, fill = left + width - 1, top + width - 1, COLOURS[colour]
        if kind == SQUARE:
            draw.rectangle((left, top, right, bottom), fill=fill)
        else:
            draw.line((left, top, right, bottom), fill=fill, width=2)
            draw.line((left, bottom, right, top), fill=fill, width=2)
        labels |= {colour, kind}
    return image, labels
