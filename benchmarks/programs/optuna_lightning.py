"""Optuna around a Lightning Trainer.

After https://github.com/optuna/optuna-examples/blob/main/pytorch/pytorch_lightning_simple.py.
"""

from __future__ import annotations

from benchmarks.programs.lightning_trainer import train
from benchmarks.programs.optuna_dataloader import search

if __name__ == "__main__":
    search(train)
