"""What a user's data function may return, made into parts that the loop can read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    default_collate,
)

from lrsearch import chance
from lrsearch.errors import WorkloadError, typed
from lrsearch.interfaces import Batch
from lrsearch.restore import find_generators
from lrsearch.workloads._splits import evaluation_rows
from lrsearch.workloads.user_code import blamed_on

SCAN_ROWS = 256
KEPT_BYTES = 2**30
"""So large may the examples of a part be that are kept, instead of being read again at each epoch and evaluation."""


@dataclass(frozen=True)
class TensorPart:
    """The rows `rows` of inputs and targets that lie on the device."""

    inputs: torch.Tensor
    device_targets: torch.Tensor
    rows: torch.Tensor
    random_sources: ClassVar[Sequence[object]] = ()

    @property
    def targets(self) -> torch.Tensor:
        """All targets, on the processor, in the order of the examples."""
        return self.device_targets[self.rows].cpu()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def subset(self, indices: torch.Tensor) -> TensorPart:
        return replace(self, rows=self.rows[indices.to(self.rows.device)])

    def shuffled(self, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        """Yield whole batches in an order that `generator` decides."""
        order = self.rows[torch.randperm(len(self.rows), generator=generator).to(device)]
        for rows in torch.split(order[: len(order) // batch_size * batch_size], batch_size):
            yield self.inputs[rows], self.device_targets[rows]

    def in_order(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        for rows in torch.split(self.rows, evaluation_rows(batch_size, self.input_shape)):
            yield self.inputs[rows], self.device_targets[rows]


@dataclass(frozen=True)
class Reader:
    """How the items of a Dataset become batches: as the user's DataLoader, if there is one, makes them."""

    dataset: Any
    collate: Any = None
    """None where it is torch's own."""
    workers: Mapping[str, Any] = field(default_factory=dict)
    """What the user's loader says about the processes that read."""

    @classmethod
    def of_loader(cls, loader: Any) -> Reader:
        workers = {name: getattr(loader, name) for name in ("num_workers", "worker_init_fn", "timeout")}
        if loader.num_workers:
            workers["multiprocessing_context"] = loader.multiprocessing_context
        own_collate = loader.collate_fn is not default_collate
        return cls(loader.dataset, loader.collate_fn if own_collate else None, workers)

    def batches(self, batch_size: int, sampler: Any, **options: Any) -> Any:
        """Return a loader of batches of the examples that `sampler` names."""
        return DataLoader(self.dataset, batch_size, sampler=sampler, collate_fn=self.collate, **self.workers, **options)


class Picked(Sampler[int]):
    """The `indices` at the places that `order` names."""

    def __init__(self, indices: Sequence[int], order: Sampler[int]) -> None:
        self._indices, self._order = indices, order

    def __iter__(self) -> Iterator[int]:
        return (self._indices[place] for place in self._order)

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]  # torch: a RandomSampler has a length


@dataclass(frozen=True)
class DatasetPart:
    """Examples of a Dataset that are read item by item; `targets` were collected in one pass."""

    reader: Reader
    indices: Sequence[int]
    targets: torch.Tensor
    input_shape: tuple[int, ...]
    """Empty when inputs are not one tensor, or of several shapes, or when the user's own function collates them."""

    @property
    def random_sources(self) -> Sequence[object]:
        return self.reader.dataset, self.reader.collate

    def subset(self, indices: torch.Tensor) -> DatasetPart:
        chosen = [self.indices[place] for place in indices.tolist()]
        return replace(self, indices=chosen, targets=self.targets[indices])

    def shuffled(self, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        sampler = Picked(self.indices, RandomSampler(self.indices, generator=generator))
        return _moved(self.reader.batches(batch_size, sampler, drop_last=True, generator=generator), device)

    def in_order(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        # A generator of its own: a DataLoader draws one number, and evaluations would change what comes after them.
        return _moved(self.reader.batches(batch_size, self.indices, generator=torch.Generator()), device)


@dataclass(frozen=True)
class LoaderPart:
    """A training DataLoader that yields its own batches."""

    loader: Any
    targets: torch.Tensor
    input_shape: tuple[int, ...]

    @property
    def random_sources(self) -> Sequence[object]:
        """The generators that `shuffled` replaces are not among them."""
        replaced = [one.generator for one in self._drawing() if _takes_generator(one)]
        of_samplers = [value for one in _samplers(self.loader) for value in _attributes(one).values()]
        own = [value for value in of_samplers if not isinstance(value, Sampler) and not _is_among(value, replaced)]
        return self.loader.dataset, self.loader.collate_fn, *own

    def shuffled(self, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[Batch]:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        own = torch.Generator().manual_seed(seed)
        for drawing in self._drawing():
            if _takes_generator(drawing):
                drawing.generator = own
            if isinstance(drawing, DistributedSampler):
                drawing.seed = seed  # nobody tells it the epoch
        if self.loader.persistent_workers:
            self.loader._iterator = None  # or the chance of its workers would go on from the trial before
        return _moved(self.loader, device)

    def _drawing(self) -> Sequence[Any]:
        return self.loader, *_samplers(self.loader)


def _samplers(loader: Any) -> list[Any]:
    """Return the loader's samplers, and those that they hold."""
    found = [loader.sampler, loader.batch_sampler]
    for sampler in found:  # grows meanwhile
        held = [value for value in _attributes(sampler).values() if isinstance(value, Sampler)]
        found += [value for value in held if not _is_among(value, found)]
    return found


def _attributes(thing: object) -> Mapping[str, Any]:
    return getattr(thing, "__dict__", {})  # a list, which can be a sampler, has none


def _takes_generator(drawing: object) -> bool:
    attributes = _attributes(drawing)
    return "generator" in attributes and isinstance(attributes["generator"], torch.Generator | None)


def _is_among(value: object, others: Sequence[object]) -> bool:
    return any(value is other for other in others)


Examples = TensorPart | DatasetPart


@dataclass(frozen=True)
class UserData:
    """The parts that a data function returned; a missing validation part is to be split from `train`."""

    train: Examples | LoaderPart
    validation: Examples | None
    test: Examples


def read_parts(returned: object, reference: str, device: torch.device) -> UserData:
    """Return the parts, tensors moved to `device`. Raises WorkloadError that says what was wrong with which part."""
    name = f"workload.data {reference!r}"
    values = _named_parts(returned, name)
    train: Examples | LoaderPart
    if isinstance(values["train"], DataLoader):
        train = _training_loader(values["train"], f"{name}, train")
    else:
        train = _examples(values["train"], f"{name}, train", device)
    others = {key: _examples(value, f"{name}, {key}", device) for key, value in values.items() if key != "train"}
    if isinstance(train, LoaderPart) and "validation" not in others:
        raise WorkloadError(
            f"{name}: a training DataLoader cannot be split, so a validation part must stand beside it: "
            "return (train, validation, test), or the Dataset itself."
        )
    for key, part in others.items():
        _check_alike(train, part, f"{name}, {key}")
    return UserData(train, others.get("validation"), others["test"])


def _named_parts(returned: object, name: str) -> Mapping[str, object]:
    if isinstance(returned, Mapping):
        if {"train", "test"} <= set(returned) <= {"train", "validation", "test"}:
            return returned
        got = f"a dict with the keys {sorted(map(str, returned))}"
    elif isinstance(returned, tuple | list) and len(returned) in (2, 3):
        keys = ("train", "test") if len(returned) == 2 else ("train", "validation", "test")
        return dict(zip(keys, returned, strict=True))
    else:
        got = _name_type(returned)
    raise WorkloadError(
        f'{name} must return {{"train": ..., "test": ...}} (and "validation" if you like), (train, test) or '
        f"(train, validation, test); got {got}."
    )


def _check_alike(train: Examples | LoaderPart, other: Examples, where: str) -> None:
    if train.input_shape and other.input_shape and train.input_shape != other.input_shape:
        raise WorkloadError(f"{where}: one input has shape {other.input_shape}, but {train.input_shape} in train.")
    of_train, of_other = ((part.targets.dtype, tuple(part.targets.shape[1:])) for part in (train, other))
    if of_train != of_other:
        raise WorkloadError(
            f"{where}: targets are {of_other[0]} of shape {of_other[1]} per row, but {of_train[0]} of shape "
            f"{of_train[1]} in train: make them alike."
        )


def _examples(value: object, where: str, device: torch.device) -> Examples:
    if type(value) is TensorDataset and len(value.tensors) == 2:
        value = value.tensors
    if isinstance(value, DataLoader):
        if type(value).__iter__ is not DataLoader.__iter__:
            raise WorkloadError(
                f"{where}: {type(value).__name__} has batches of its own (__iter__), which would be passed over where "
                "examples are chosen: make them so in the Dataset or in collate_fn."
            )
        return _kept(_read_through(Reader.of_loader(value), _indices(value, where), where), where, device)
    if isinstance(value, Dataset):
        every = range(len(_with_length(value, where)))
        return _kept(_read_through(Reader(value), every, where), where, device)
    if isinstance(value, tuple | list) and len(value) == 2:
        inputs, targets = _tensor(value[0], f"{where}: inputs"), as_targets(_tensor(value[1], f"{where}: targets"))
        if len(inputs) != len(targets):
            raise WorkloadError(
                f"{where}: there are {len(inputs)} inputs but {len(targets)} targets: give one per input."
            )
        return TensorPart(inputs.to(device), targets.to(device), torch.arange(len(inputs), device=device))
    raise WorkloadError(f"{where} must be (inputs, targets), a Dataset or a DataLoader; got {_name_type(value)}.")


def _training_loader(loader: Any, where: str) -> LoaderPart:
    scanned, _ = _read_through(Reader.of_loader(loader), _indices(loader, where), where, trains=True)
    return LoaderPart(loader, scanned.targets, scanned.input_shape)


def _with_length(dataset: Any, where: str) -> Any:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise WorkloadError(
            f"{where}: {type(dataset).__name__} must have a length (__len__) and items by number (__getitem__)."
        )
    return dataset


def _indices(loader: Any, where: str) -> Sequence[int]:
    """Return the examples that the loader's sampler visits, in order."""
    _with_length(loader.dataset, where)
    if loader.batch_sampler is None:
        raise WorkloadError(f"{where}: the DataLoader must make the batches itself: give it a batch_size.")
    with blamed_on(f"{where}: its sampler"):
        batches = loader.batch_sampler
        if type(batches) is BatchSampler:
            return sorted(islice(batches.sampler, len(batches.sampler)))  # type: ignore[arg-type]  # torch: it has one
        return sorted(chain.from_iterable(islice(batches, len(batches))))  # some never end


def _read_through(
    reader: Reader, indices: Sequence[int], where: str, *, trains: bool = False
) -> tuple[DatasetPart, list[torch.Tensor]]:
    """Read the examples once: collect targets and check that inputs and targets are finite.

    Return the inputs, too, batch by batch, where they are tensors of one shape, not too large; none of a loader that
    `trains` with its own batches.
    """
    own_collate, keeps = reader.collate is not None, not trains
    targets: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    shapes: set[tuple[int, ...]] = set()
    with blamed_on(f"{where}: reading it"):
        for batch in reader.batches(SCAN_ROWS, indices):
            inputs, batch_targets = _pair(batch, where)
            first_row = SCAN_ROWS * len(targets)
            if isinstance(inputs, torch.Tensor):
                inputs = _tensor(inputs, f"{where}: inputs", first_row=first_row)
                shapes.add(() if own_collate else tuple(inputs.shape[1:]))
            targets.append(_unshared(as_targets(_tensor(batch_targets, f"{where}: targets", first_row=first_row))))
            keeps = keeps and isinstance(inputs, torch.Tensor) and not own_collate and len(shapes) == 1
            keeps = keeps and len(targets) * (inputs.nbytes + targets[-1].nbytes) <= KEPT_BYTES
            if keeps:
                kept.append(_unshared(inputs))
            else:
                kept.clear()
    if not targets:
        raise WorkloadError(f"{where} is empty: give at least one example.")
    with blamed_on(f"{where}: putting the targets of all batches together"):
        all_targets = torch.cat(targets)
    if len(all_targets) != len(indices) and not trains:
        raise WorkloadError(
            f"{where}: there are {len(all_targets)} targets of {len(indices)} examples: give one for each, and leave "
            "examples out in the Dataset or by a sampler, not in collate_fn."
        )
    return DatasetPart(reader, indices, all_targets, shapes.pop() if len(shapes) == 1 else ()), kept


def _kept(read: tuple[DatasetPart, list[torch.Tensor]], where: str, device: torch.device) -> Examples:
    """Return the examples as tensors where they are the same when they are read again, and that draws no chance."""
    part, kept = read
    own = find_generators(part.reader.dataset)
    if not kept or (own and part.reader.workers.get("num_workers")):  # of whose chance each worker has a copy
        return part
    inputs, before = torch.cat(kept), chance.snapshot(own)
    kept.clear()  # while the data are read again they lie in memory once
    with blamed_on(f"{where}: reading it again"):
        if not _is_read_alike(part, inputs) or not chance.is_alike(before, chance.snapshot(own)):
            return part
    return TensorPart(inputs.to(device), part.targets.to(device), torch.arange(len(inputs), device=device))


def _is_read_alike(part: DatasetPart, inputs: torch.Tensor) -> bool:
    other_chance, first = torch.Generator().manual_seed(1), 0  # for workers
    for again, targets in part.reader.batches(SCAN_ROWS, part.indices, generator=other_chance):
        rows = slice(first, first + len(again))
        if not torch.equal(_single_precision(again), inputs[rows]):
            return False
        if not torch.equal(as_targets(_single_precision(targets)), part.targets[rows]):
            return False
        first = rows.stop
    return first == len(inputs)


def _unshared(tensor: torch.Tensor) -> torch.Tensor:
    """Return what a worker has sent in memory of our own: else each batch holds a file open and shared memory."""
    is_shared = tensor.device.type == "cpu" and tensor.is_shared()  # type: ignore[no-untyped-call]  # torch: untyped
    return tensor.clone() if is_shared else tensor


def _tensor(value: object, where: str, first_row: int = 0) -> torch.Tensor:
    """Return `value` as a tensor with rows, all finite; float64 becomes float32."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):  # a plain array has what lies under the mask
        raise WorkloadError(
            f"{where} must be there, but {np.count_nonzero(value.mask)} values are masked: fill or drop them."
        )
    try:
        tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise WorkloadError(
            f"{where} must be a tensor or an array of numbers, got {_name_type(value)}: turn text into numbers; "
            "inputs alone may be several tensors, from a Dataset."
        ) from error
    if tensor.layout != torch.strided:
        raise WorkloadError(f"{where} must be dense, got a tensor of layout {tensor.layout}: use .to_dense().")
    with blamed_on(f"{where}: looking at them"):  # nested, quantized, without a device
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise WorkloadError(f"{where} must have one row per example, got shape {tuple(tensor.shape)}.")
        bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        any_bad = bool(bad.any())
    if any_bad:
        raise WorkloadError(
            f"{where} must be finite, but row {first_row + int(bad.nonzero()[0])} is the first that holds NaN or "
            "infinity: fill or drop such rows."
        )
    return _single_precision(tensor)


def _single_precision(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def as_targets(targets: torch.Tensor) -> torch.Tensor:
    """Return whole numbers as int64, the only kind that torch's losses take; others as they are."""
    floating = targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    return targets if floating else targets.long()


def _pair(batch: object, where: str) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise WorkloadError(
        f"{where}: an item must be (input, target), got {_name_type(batch)}: let __getitem__ return "
        "these two, or collate_fn of a DataLoader."
    )


def _moved(loader: Any, device: torch.device) -> Iterator[Batch]:
    for batch in loader:
        inputs, targets = _pair(batch, "workload.data")
        yield _on_device(inputs, device), as_targets(_on_device(targets, device))


def _on_device(value: Any, device: torch.device) -> Any:
    """Return `value` with every tensor in it on `device`, however deep in dicts, lists, tuples and dataclasses."""
    if isinstance(value, torch.Tensor):
        own = _single_precision(value)
        if device.type == "cuda" and own.device.type == "cpu":
            # The next batch is made meanwhile; but what the user has pinned may be used again for that.
            return own.pin_memory().to(device, non_blocking=not own.is_pinned())
        return own.to(device)
    if type(value) in (list, tuple):
        return type(value)(_on_device(item, device) for item in value)
    if type(value) is dict:
        return {key: _on_device(item, device) for key, item in value.items()}
    if callable(getattr(value, "to", None)):
        return value.to(device)  # a PackedSequence, a batch of graphs, ...
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_on_device(item, device) for item in value)
    if isinstance(value, MutableMapping | MutableSequence):
        same: Any = copy.copy(value)
        for key in same if isinstance(same, Mapping) else range(len(same)):
            same[key] = _on_device(same[key], device)
        return same
    if isinstance(value, Mapping):
        return {key: _on_device(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        same = copy.copy(value)
        for member in fields(value):  # a frozen one's too
            object.__setattr__(same, member.name, _on_device(getattr(value, member.name), device))
        return same
    return value


def _name_type(value: object) -> str:
    count = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{typed(value)}{count}"
