"""From iMaterialist's label files and folders of images to arrays; `multi_label_images` describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrsearch.errors import DataError
from lrsearch.workloads._image_cache import DecodedImages, cached
from lrsearch.workloads._image_decoding import MODES, decode_all
from lrsearch.workloads._image_files import EXTENSIONS
from lrsearch.workloads._splits import stratified_split


class _Entry(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = Field(alias="imageId")


class _Annotation(_Entry):
    labels: frozenset[str] = Field(alias="labelId")


class _LabelFile(BaseModel):
    images: tuple[_Entry, ...]
    annotations: tuple[_Annotation, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The images of one label file, in its order."""

    source: Path
    files: list[Path]
    labels: list[frozenset[str]]

    def subset(self, rows: Iterable[int]) -> _Part:
        chosen = list(rows)
        return _Part(self.source, [self.files[row] for row in chosen], [self.labels[row] for row in chosen])


@dataclass(frozen=True)
class LabelledImages:
    """The three parts, before any image was opened; `validation` is None where each seed holds back its own."""

    label_names: Sequence[str]
    train: _Part
    validation: _Part | None
    test: _Part

    def decoded(self, image_size: int | None, color: str) -> DecodedImages:
        """Return all images, from the cache or decoded now, with rows of zeros and ones as labels."""
        names = self.label_names
        train_labels, test_labels = _rows(self.train, names), _rows(self.test, names)
        files, own_count = list(self.train.files), len(self.train.files)
        if self.validation is not None:
            files += self.validation.files
            train_labels = np.concatenate([train_labels, _rows(self.validation, names)])
        count, every = len(files), [*files, *self.test.files]

        def decode(target: Path) -> DecodedImages:
            # Labels stay out of the cache: they are read each time, and a corrected one costs no decoding.
            images = decode_all(every, image_size, MODES[color], target)
            none = np.zeros(len(every), np.int64)
            return DecodedImages(images[:count], none[:count], images[count:], none[count:], len(names))

        settings = {"root": str(self.train.source.parent.resolve()), "image_size": image_size, "color": color}
        return replace(
            cached("multi_label_images", every, settings, decode),
            train_labels=train_labels,
            test_labels=test_labels,
            class_count=len(names),
            validation_count=count - own_count,
        )


def read_labelled(root: Path, test_fraction: float | None) -> LabelledImages:
    """Return the parts that the label files under `root` make. Raises DataError that names the file and the image."""
    if not (root / "train.json").is_file():
        raise DataError(
            f"{root / 'train.json'} is not there: point workload.data_root at a folder with train.json and its images."
        )
    train, validation, test = (_read_part(root, name) for name in ("train", "validation", "test"))
    if train is None:
        raise DataError(f"{root / 'train.json'} has no annotations: every training image needs its labels.")
    names = sorted(frozenset[str]().union(*train.labels), key=lambda name: (len(name), name))
    if not names:
        raise DataError(f"{root / 'train.json'} gives no image a label: there is nothing to learn.")
    _check_apart([part for part in (train, validation, test) if part is not None])
    if test is not None and test_fraction is not None:
        raise DataError(f"{test.source} is the test set, so workload.test_fraction ({test_fraction}) must go.")
    if test is not None:
        return LabelledImages(names, train, validation, test)
    if test_fraction is not None:
        one_class = np.zeros(len(train.files), np.int64)
        kept, held_back = stratified_split(one_class, test_fraction, np.random.default_rng(0))
        return LabelledImages(names, train.subset(kept), validation, train.subset(held_back))
    if validation is not None:
        return LabelledImages(names, train, None, validation)
    raise DataError(
        f"{root} has no test.json with annotations and no validation.json: add one, or set workload.test_fraction, "
        "such as 0.2, to hold back a part of the images for the test."
    )


def _read_part(root: Path, name: str) -> _Part | None:
    """Return the images of one label file; None where it is absent or has no annotations at all."""
    source = root / f"{name}.json"
    if not source.is_file():
        return None
    try:
        listed = _LabelFile.model_validate_json(source.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{source}{f', {place}' if place else ''}: {first['msg']}; it must hold "
            '{"images": [{"imageId": "1"}], "annotations": [{"imageId": "1", "labelId": ["22"]}]}.'
        ) from error
    if not listed.images:
        raise DataError(f"{source} lists no images: add some, or remove the file.")
    if not listed.annotations:
        return None
    ids = [image.id for image in listed.images]
    _check_ids(source, ids, [annotation.id for annotation in listed.annotations])
    labels = {annotation.id: annotation.labels for annotation in listed.annotations}
    return _Part(source, _find(root, name, source, ids), [labels[image] for image in ids])


def _check_ids(source: Path, images: Sequence[str], annotated: Sequence[str]) -> None:
    """Raise DataError unless each image is listed once and annotated once."""
    for what, ids in (("images", images), ("annotations", annotated)):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(f"{source}: {_shown(twice)} stands in {what} more than once: keep one entry for each.")
    if bare := sorted(set(images) - set(annotated)):
        raise DataError(f"{source}: {_shown(bare)} has no annotation: add its labels, or remove it from images.")
    if unknown := sorted(set(annotated) - set(images)):
        raise DataError(f"{source}: {_shown(unknown)} has an annotation but is not in images: list it, or remove it.")


def _find(root: Path, name: str, source: Path, ids: Sequence[str]) -> list[Path]:
    """Return the file of each image: the one in the part's folder whose name without its ending is the image's id."""
    folder = next((place for place in (root / name, root / "images") if place.is_dir()), root)
    found: dict[str, Path] = {}
    wanted = set(ids)
    for path in sorted(folder.iterdir()):
        if path.stem not in wanted or path.suffix.lower() not in EXTENSIONS:
            continue
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} are both the image {path.stem!r}: remove one.")
        found[path.stem] = path
    if missing := [image for image in ids if image not in found]:
        raise DataError(
            f"{source} lists {_shown(missing)}, but {folder} holds no {missing[0]}.jpg (nor .png, ...): fetch what is "
            "missing, or remove it from images and annotations."
        )
    return [found[image] for image in ids]


def _check_apart(parts: Sequence[_Part]) -> None:
    """Raise DataError when two parts share an image: the challenge numbers each part from 1."""
    seen: dict[Path, Path] = {}
    for part in parts:
        for file in part.files:
            if file in seen:
                raise DataError(
                    f"{file} belongs to both {seen[file].name} and {part.source.name}: give each part a folder of its "
                    "own (train, validation, test), or remove it from one."
                )
            seen[file] = part.source


def _rows(part: _Part, names: Sequence[str]) -> NDArray[np.uint8]:
    """Return zeros and ones, (images, labels). Raises DataError for a label that is not among `names`."""
    column = {name: index for index, name in enumerate(names)}
    rows = np.zeros((len(part.files), len(names)), np.uint8)
    for row, (file, labels) in enumerate(zip(part.files, part.labels, strict=True)):
        if unknown := labels - column.keys():
            raise DataError(
                f"{part.source}: image {file.stem!r} has the label {min(unknown)!r}, which no image of train.json "
                "has: correct or remove it."
            )
        rows[row, [column[label] for label in labels]] = 1
    return rows


def _shown(ids: Sequence[str]) -> str:
    """Return "image '7'", or "image '7' (and 3 more)"."""
    return f"image {ids[0]!r}" + (f" (and {len(ids) - 1} more)" if len(ids) > 1 else "")
