"""The same with a LightningModule and a Trainer. Its logs, checkpoints and progress bar are off, as they cost.

After https://lightning.ai/docs/pytorch/stable/starter/introduction.html.
"""

from __future__ import annotations

import logging
from typing import Any

import lightning
import torch
import torch.nn.functional as F

from benchmarks.tasks import MOMENTUM, SEED, Options, TrainClock, loaders, new_model, options, tell_trial


class Classifier(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        super().__init__()
        self.model = model
        self.rate = rate

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.model(inputs), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        inputs, targets = batch
        self.log("accuracy", (self.model(inputs).argmax(1) == targets).float().mean())

    def test_step(self, batch: Any, batch_index: int) -> None:
        inputs, targets = batch
        self.log("test_accuracy", (self.model(inputs).argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=MOMENTUM)


class Clock(lightning.Callback):
    def __init__(self, clock: TrainClock) -> None:
        self.clock = clock

    def on_train_epoch_start(self, *_: Any) -> None:
        self.clock.begin()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.clock.stepped()
        if trainer.is_last_batch:  # the validation of the epoch comes before on_train_epoch_end
            self.clock.end()


def train(chosen: Options, rate: float, clock: TrainClock) -> float:
    """Train once, with an evaluation after each epoch and one of the test set, and return the validation accuracy."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    train_loader, validation_loader, test_loader = loaders(chosen)
    lightning.seed_everything(SEED)
    model = Classifier(new_model(chosen.task), rate)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=chosen.epochs,
        precision="bf16-mixed" if chosen.precision == "bfloat16" else "32-true",
        callbacks=[Clock(clock)],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_loader, validation_loader)
    accuracy = float(trainer.callback_metrics["accuracy"])
    trainer.test(model, test_loader, verbose=False)
    return accuracy


if __name__ == "__main__":
    chosen, clock = options(), TrainClock()
    tell_trial(clock, train(chosen, chosen.rates[0], clock), chosen)
