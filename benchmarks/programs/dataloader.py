"""The loop of torch's tutorials: torchvision's data set, transforms, a DataLoader, zero_grad, backward, step.

After https://docs.pytorch.org/tutorials/beginner/introyt/trainingyt.html.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.tasks import MOMENTUM, SEED, Options, TrainClock, loaders, new_model, options, tell_trial


def train(chosen: Options, rate: float, clock: TrainClock) -> float:
    """Train once, with an evaluation after each epoch and one of the test set, and return the validation accuracy."""
    train_loader, validation_loader, test_loader = loaders(chosen)
    torch.manual_seed(SEED)
    model = new_model(chosen.task)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    bfloat16 = chosen.precision == "bfloat16"
    accuracy = 0.0
    for _ in range(chosen.epochs):
        model.train()
        clock.begin()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            clock.stepped()
        clock.end()
        accuracy = evaluate(model, validation_loader, bfloat16)
    evaluate(model, test_loader, bfloat16)
    return accuracy


def evaluate(model: torch.nn.Module, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]], bfloat16: bool) -> float:
    """Return the accuracy."""
    model.eval()
    correct = count = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for inputs, targets in loader:
            correct += int((model(inputs).argmax(1) == targets).sum())
            count += len(targets)
    return correct / count


if __name__ == "__main__":
    chosen, clock = options(), TrainClock()
    tell_trial(clock, train(chosen, chosen.rates[0], clock), chosen)
