"""The limit: the engine's own parts in the shortest loop that trains: images in memory, channels last, several batches
by one index, autocast, one kernel for the optimiser, freed memory kept; nothing else.

No schedule, no ledger, no curve, no check of the loss: what lrsearch takes more than this is what its service costs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.tasks import MOMENTUM, SEED, TASKS, Options, TrainClock, new_model, options, read, split, tell_trial
from lrsearch.interfaces import BLOCK_STEPS
from lrsearch.plain_optimizer import plain_step, spare_dynamo
from lrsearch.training import keep_freed_memory
from lrsearch.workloads._images import FLOAT_BYTES, PROCESSOR_BYTES
from lrsearch.workloads._splits import evaluation_rows


def epochs(chosen: Options, rate: float, clock: TrainClock) -> Iterator[float]:
    """Train, and yield the validation accuracy after each epoch."""
    keep_freed_memory()
    spare_dynamo()
    decoded = read(chosen.task)
    images = torch.from_numpy(np.ascontiguousarray(decoded.train_images.transpose(0, 2, 3, 1)))
    labels = torch.from_numpy(np.array(decoded.train_labels))
    count = min(chosen.images, len(labels))
    train_rows, validation_rows = (torch.from_numpy(rows) for rows in split(decoded.train_labels, count))
    task = TASKS[chosen.task]
    whole = 16.0 if chosen.task == "digits" else 255.0
    mean = torch.tensor(task.mean).view(1, -1, 1, 1) * whole
    factor = 1 / (torch.tensor(task.deviation).view(1, -1, 1, 1) * whole)

    def batch(rows: torch.Tensor) -> torch.Tensor:
        return images.index_select(0, rows).permute(0, 3, 1, 2).float().sub_(mean).mul_(factor)

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size, order = chosen.batch_size, train_rows[torch.randperm(len(train_rows))]
        bytes_of_a_batch = FLOAT_BYTES * size * images[0].numel()
        at_once = max(1, min(BLOCK_STEPS, PROCESSOR_BYTES // bytes_of_a_batch))
        for rows in order[: len(order) // size * size].split(at_once * size):
            yield from zip(batch(rows).split(size), labels[rows].split(size), strict=True)

    evaluated = evaluation_rows(chosen.batch_size, task.input_shape)
    torch.manual_seed(SEED)
    model = new_model(chosen.task).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM, fused=True)
    step = plain_step(optimizer)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=chosen.precision == "bfloat16")
    for _ in range(chosen.epochs):
        clock.begin()
        for inputs, targets in epoch():
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            step()
            clock.stepped()
        clock.end()
        with torch.inference_mode(), autocast:
            outputs = torch.cat([model(batch(rows)) for rows in validation_rows.split(evaluated)])
        yield float((outputs.argmax(1) == labels[validation_rows]).float().mean())


if __name__ == "__main__":
    chosen, clock = options(), TrainClock()
    *_, accuracy = epochs(chosen, chosen.rates[0], clock)
    tell_trial(clock, accuracy, chosen)
